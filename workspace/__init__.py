"""One Workspace for running code that nobody has reviewed: locally, in a container, in a cloud sandbox."""

from workspace import errors
from workspace.backend import Capabilities, SandboxRecord
from workspace.commands import AsyncCommandHandle, CommandInfo
from workspace.errors import *  # noqa: F403
from workspace.fileinfo import FileEvent, FileInfo, Match
from workspace.output import CommandResult, OutputChunk
from workspace.spec import NetworkPolicy, Resources, WorkspaceSpec
from workspace.sync import Workspace
from workspace.workspace import AsyncWorkspace, IsolationWarning, Metrics, WorkspaceInfo
