"""What runs inside a sandbox: process 1, untrusted by the host, Python 3.8 and the standard library only.

One thread, one epoll loop. User code never runs in this process: commands run under shepherds (`shepherd.py`).
Modules here avoid `typing`, `re`, `enum`, `json`, `socket`, `signal` and `subprocess` at import time: together
they would more than double the time from start to the first answer.
"""
