"""Agents that use a Workspace. They come with a later version; the place is kept."""
