"""The protocol's server: a client's calls become calls of the tools."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, Final, cast

import anyio
import attrs
import mcp_types as types
import trio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from mflux_api.mcp.answers import error_result
from mflux_api.mcp.backend import Backend
from mflux_api.mcp.files import InputFiles, Links, folder_of_uri
from mflux_api.mcp.stdio import Descriptors, InputLines, Output
from mflux_api.mcp.tools import Tools
from mflux_api.version import package_version

Context = ServerRequestContext[Any]

_ROOTS_SECONDS: Final = 5.0
"""How long the client may take to name its folders."""
_MAX_ROOTS: Final = 64

_FIRST_WITH_LINKS: Final = "2025-06-18"
"""The version of the protocol that brought resource links; versions are dates."""

_INSTRUCTIONS: Final = (
    "Generates, edits and upscales images with FLUX.2. Every image is also written to a PNG file, whose path is in the "
    "answer and can be given to edit or upscale. Where a call may take longer than you can wait, pass background=true "
    "and ask job_status."
)

logger = logging.getLogger(__name__)


@attrs.frozen
class _Client:
    """The client of one call."""

    context: Context

    async def report(self, progress: float, total: float, message: str) -> None:
        """Tell how far the call is, where the client asked to be told."""
        await self.context.session.report_progress(progress, total, message)

    async def folders(self) -> Sequence[Path]:
        """Return the folders that the client has opened; none where it does not say."""
        session = self.context.session
        capabilities = session.client_capabilities
        if capabilities is None or capabilities.roots is None or not session.can_send_request:
            return ()
        found: list[Path] = []
        # A ValueError is an answer of another shape, such as one with addresses of other kinds.
        with suppress(MCPError, ValueError), trio.move_on_after(_ROOTS_SECONDS):
            answer = await session.send_request(types.ListRootsRequest(), types.ListRootsResult)
            found = [folder for root in answer.roots[:_MAX_ROOTS] if (folder := folder_of_uri(str(root.uri)))]
        return found


def build_server(tools: Tools, links: Links) -> Server[Any]:
    """Return a server of these tools."""

    async def list_tools(context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools.listing())

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in tools:
            raise MCPError(code=types.INVALID_PARAMS, message="No tool has this name; tools/list names them all")
        try:
            result = await tools.call(params.name, params.arguments or {}, _Client(context))
        except Exception as error:
            # The SDK would send its text to the client.
            logger.error("tool %s: %s; the trace is in the debug log", params.name, type(error).__name__)
            logger.debug("tool %s", params.name, exc_info=error)
            return error_result("The tool failed because of a defect; the log says more (INTERNAL_ERROR)")
        if context.protocol_version < _FIRST_WITH_LINKS:
            # Older clients refuse a whole answer for one block of a kind that they do not know.
            result.content = [block for block in result.content if not isinstance(block, types.ResourceLink)]
        return result

    async def list_resources(
        context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(
            resources=[
                types.Resource(name=link.path.name, uri=link.uri, mime_type="image/png", size=link.size)
                for link in links.newest_first()
            ]
        )

    async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        try:
            data = await links.read(str(params.uri))
        except OSError as error:
            why = (error.strerror or "it is gone").lower()
            raise MCPError(
                code=types.INVALID_PARAMS, message=f"The image's file cannot be read ({why}); generate it again"
            ) from None
        if data is None:
            raise MCPError(
                code=types.INVALID_PARAMS, message="No image of this session is called so; resources/list names them"
            )
        contents = types.BlobResourceContents(uri=params.uri, mime_type="image/png", blob=data)
        return types.ReadResourceResult(contents=[contents])

    return Server(
        "mflux-api",
        version=package_version(),
        title="mflux-api",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
    )


async def serve(
    opened: Callable[[], AbstractAsyncContextManager[Backend]],
    files: InputFiles,
    streams: Descriptors,
    stop: trio.Event,
) -> None:
    """Serve one client until it closes its end, or until told to stop.

    Args:
        opened: opens the service.
        files: the images that requests may name.
        streams: the client.
        stop: ends it.

    Raises:
        ServiceFailed: the service gave up.
        OSError: the client cannot be read from or written to.
    """
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        async with opened() as backend:
            links = Links()
            server = build_server(Tools(backend, files, links), links)
            reading = cast("anyio.AsyncFile[str]", InputLines(streams.reading))
            writing = cast("anyio.AsyncFile[str]", Output(streams.writing))
            async with stdio_server(reading, writing) as (messages, answers):
                await server.run(messages, answers, server.create_initialization_options())
        nursery.cancel_scope.cancel()
