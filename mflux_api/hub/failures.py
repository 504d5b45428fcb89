"""Errors of a download as messages that say what to do next."""

import errno
import os
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import httpx
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mflux_api.hub.cache import MAIN, HubCache
from mflux_api.hub.download import Damaged, NoSpace, NotAHub
from mflux_api.hub.placing import NoLocks
from mflux_api.hub.protocol import DownloadFailure, DownloadRequest
from mflux_api.hub.snapshots import whole_snapshot
from mflux_api.ipc.printable import MAX_NAME, printable
from mflux_api.system.network_variables import proxy_for

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP)
_AGAIN = "what has arrived is kept, and the next try goes on from there"


def explain(error: Exception, order: DownloadRequest, endpoint: str = constants.ENDPOINT) -> DownloadFailure:
    """Return a code and a sentence for whatever ended a download; it names no path of this machine."""
    causes = tuple(_causes(error))
    for cause in causes:
        if isinstance(cause, NoSpace):
            return _disk_full_failure(f"{_gb(cause.needed)} more are needed and {_gb(cause.free)} are free", cause)
        if isinstance(cause, NoLocks):
            return _failure(
                f"models.cache_dir is on a file system without locks ({cause}), which keep two downloads of one file "
                "apart; set it to a folder on another disk"
            )
        if isinstance(cause, Damaged):
            return _failure(f"{order.repo}: {cause}; try again")
        if isinstance(cause, OfflineModeIsEnabled):
            variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
            return _failure(
                f"{order.repo} cannot be downloaded: {variable} is set; unset it and restart, "
                f"or point [[models.custom]] at a checkpoint on disk{_other_revision(order)}"
            )
        if isinstance(cause, GatedRepoError):
            return _gated_failure(order, endpoint)
        if isinstance(cause, RevisionNotFoundError):
            return _failure(f"{order.repo} has no revision '{order.revision or 'main'}'; check the catalog entry")
        if isinstance(cause, RepositoryNotFoundError):
            return _failure(
                f"{order.repo} is not on the model hub, or is private: check the name; "
                "for a private one set HF_TOKEN to a token of an account that may read it"
            )
        if isinstance(cause, HfHubHTTPError):
            return _refusal(order, cause, endpoint)
        if isinstance(cause, httpx.TransportError):
            return _not_reached(order, cause, causes, endpoint)
        if isinstance(cause, NotAHub | httpx.TooManyRedirects):
            return _no_hub_failure(endpoint)
        if isinstance(cause, UnicodeEncodeError):
            return _failure(
                f"{order.repo} cannot be downloaded: HF_TOKEN, or another variable that is sent to the hub, has a "
                "character that no request can have; write it anew, and restart"
            )
    for cause in causes:
        if isinstance(cause, HFValidationError):
            return _failure(f"'{order.repo}' is not a repository name; write owner/name")
        if isinstance(cause, LocalEntryNotFoundError | DryRunError | EntryNotFoundError):
            return _failure(f"{order.repo} cannot be looked up on the model hub ({_host(endpoint)}); check the network")
        if isinstance(cause, OSError):
            return _os_failure(order, cause)
    return _failure(f"{order.repo} cannot be downloaded ({type(error).__name__}); the debug log has the details")


def _other_revision(order: DownloadRequest) -> str:
    """Say that the main branch is on disk where another revision is asked for; it is not used unasked."""
    cache = HubCache(Path(order.cache_dir))
    if order.revision in (None, MAIN) or (main := whole_snapshot(cache, order.repo, MAIN, order.files)) is None:
        return ""
    return f"; its main branch is on disk: [[models.custom]] with revision = '{main.name}' uses that"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # huggingface_hub wraps the interesting one in others.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _gated_failure(order: DownloadRequest, endpoint: str) -> DownloadFailure:
    url = f"{endpoint}/{order.repo}"
    then = (
        "with the account of your HF_TOKEN, and try again"
        if get_token()
        else "set HF_TOKEN to a token of that account, restart and try again"
    )
    return DownloadFailure(
        code="MODEL_GATED",
        message=f"{order.repo} is gated: accept its licence ({order.licence}) at {url}, {then}",
        details={"repo": order.repo, "licence": order.licence, "url": url, "variable": "HF_TOKEN"},
    )


def _not_reached(
    order: DownloadRequest, error: httpx.TransportError, causes: Sequence[BaseException], endpoint: str
) -> DownloadFailure:
    host, proxy = _host(endpoint), proxy_for(endpoint, os.environ)
    through = f" through the proxy of {proxy}" if proxy else ""
    untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        why = untrusted.verify_message or "not trusted"
        return _failure(
            f"The certificate of the model hub ({host}){through} is not accepted here ({why}): put the certificate "
            "that your network uses into a file, name that in SSL_CERT_FILE, and restart"
        )
    check = "that proxy" if proxy else "the network"
    return _failure(
        f"The model hub ({host}) cannot be reached{through}, or fell silent ({_reason(error, causes)}); check {check} "
        f"and try again: {_AGAIN}{_other_revision(order)}"
    )


def _reason(error: httpx.TransportError, causes: Sequence[BaseException]) -> str:
    if isinstance(error, httpx.ProxyError) and str(error):
        return printable(str(error), MAX_NAME)
    if isinstance(error, httpx.TimeoutException):
        return "no connection in time" if isinstance(error, httpx.ConnectTimeout) else "no answer in time"
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is None:
        return type(error).__name__
    reason = system.reason if isinstance(system, ssl.SSLError) else system.strerror
    return (reason or "").replace("_", " ").lower()


def _refused_failure(order: DownloadRequest, status: int, endpoint: str) -> DownloadFailure:
    """Return what to do where the hub, or what is in front of it, does not say why it refuses."""
    gated = _gated_failure(order, endpoint)
    _, _, advice = gated.message.partition(": ")
    return attrs.evolve(
        gated,
        message=f"{order.repo} is refused ({status}), by {_host(endpoint)} or a proxy of your network. If it is gated, "
        f"{advice}",
    )


def _no_hub_failure(endpoint: str) -> DownloadFailure:
    return _failure(
        f"What answers at {_host(endpoint)} is not a model hub; check HF_ENDPOINT, and whether your network wants a "
        "login first"
    )


def _refusal(order: DownloadRequest, error: HfHubHTTPError, endpoint: str) -> DownloadFailure:
    status = error.response.status_code
    if status == 401 and "invalid" in error.response.headers.get("X-Error-Message", "").lower():
        return _failure(
            f"The model hub ({_host(endpoint)}) does not accept the token of HF_TOKEN, or of a login on this machine: "
            "set HF_TOKEN to one that is valid (or log out, where none is needed), and restart"
        )
    if status == 407:
        variable = proxy_for(endpoint, os.environ) or "HTTPS_PROXY"
        return _failure(
            f"The proxy of {variable} asks for a name and a password: write http://name:password@host:port there, and "
            "restart"
        )
    if status in (401, 403):
        return _refused_failure(order, status, endpoint)
    if status == 404:
        if "/resolve/" not in error.response.request.url.path:
            return _no_hub_failure(endpoint)
        return _failure(f"{order.repo} lacks a file that its own listing names; try again, or another revision")
    if status == 429:
        return _failure(f"The model hub asks to slow down (429); try again in a few minutes: {_AGAIN}")
    return _failure(f"The model hub answered {status} for {order.repo}; try again later: {_AGAIN}")


def _os_failure(order: DownloadRequest, error: OSError) -> DownloadFailure:
    if error.filename is not None and os.fspath(error.filename) == constants.HF_TOKEN_PATH:
        # Of a login: what another user made, or what HF_TOKEN_PATH names.
        return _failure(
            f"The file with the hub's token cannot be read ({(error.strerror or '').lower()}): set HF_TOKEN, or "
            "HF_TOKEN_PATH to a file that can, and restart"
        )
    if isinstance(error, ssl.SSLError):
        return _failure(
            f"{order.repo} cannot be downloaded: the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be used; "
            "unset it, or name others, and restart"
        )
    if error.errno in _DISK_FULL:
        return _disk_full_failure("the disk is full", None)
    if error.errno in _FORBIDDEN:
        return _failure("models.cache_dir cannot be written; check its permissions, or choose another folder")
    if error.errno in _NO_FOLDER:
        return _failure(
            "models.cache_dir, or a folder in it, is a file or a link that leads nowhere; remove that, or choose "
            "another folder"
        )
    if error.errno is None and "Consistency check" in str(error):
        return _failure(f"{order.repo}: a file arrived shorter or longer than it should be; try again: {_AGAIN}")
    reason = os.strerror(error.errno) if error.errno is not None else type(error).__name__
    return _failure(f"{order.repo} cannot be downloaded ({reason}); try again: {_AGAIN}")


def _disk_full_failure(what: str, space: NoSpace | None) -> DownloadFailure:
    return DownloadFailure(
        code="DISK_FULL",
        message=f"No space for the model in models.cache_dir: {what}; free some, or choose another folder",
        details={} if space is None else {"needed_bytes": space.needed, "free_bytes": space.free},
    )


def _failure(message: str) -> DownloadFailure:
    return DownloadFailure(code="DOWNLOAD_FAILED", message=message)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _host(endpoint: str) -> str:
    return httpx.URL(endpoint).host
