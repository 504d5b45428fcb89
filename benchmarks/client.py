"""A client of a benchmark's server, and what that server noted of each job."""

import json
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs

PROMPT = "a red house by a lake"
STEPS = 4
_TIMEOUT_SECONDS = 600


@attrs.frozen(kw_only=True)
class Sample:
    """One job: the seconds until its images were here, and those of them that the server noted for its parts."""

    seconds: float
    encode: float
    denoise: float
    decode: float
    total: float
    """From the moment at which the job began to run until its images were on disk."""
    load: float = 0.0

    @property
    def engine(self) -> float:
        """The engine's seconds."""
        return self.encode + self.denoise + self.decode


class Client:
    """Calls of one server."""

    def __init__(self, url: str, model: str, database: Path | None = None) -> None:
        """Take where it listens, the model of all jobs, and where it notes them, for :meth:`timings`."""
        self._base = url.rstrip("/")
        self._database = database
        self._fields = {"prompt": PROMPT, "model": model, "steps": STEPS, "width": 512, "height": 512}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the object that is answered."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, method=method, data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def image(self, **fields: Any) -> float:
        """Generate one, and return the seconds until it was here."""
        begun = time.perf_counter()
        self.ask("POST", "/sdapi/v1/txt2img", self._fields | fields)
        return time.perf_counter() - begun

    def submit(self, **fields: Any) -> str:
        """Submit a job and return its id."""
        return str(self.ask("POST", "/api/v1/generate", self._fields | fields)["job_id"])

    def wait(self, job: str) -> dict[str, Any]:
        """Return a job when it has ended."""
        while True:
            found = self.ask("GET", f"/api/v1/jobs/{job}?wait=30")
            if found["status"] in ("completed", "failed", "cancelled"):
                return found

    def follow(self, *, previews: bool, **fields: Any) -> float:
        """Submit a job and follow it, with its previews or without; return the seconds to its end."""
        begun = time.perf_counter()
        path = f"/api/v1/jobs/{self.submit(**fields)}/stream" + "?previews=jpeg" * previews
        with urllib.request.urlopen(self._base + path, timeout=_TIMEOUT_SECONDS) as stream:
            for line in stream:
                if line.startswith(b"event: complete"):
                    break
        return time.perf_counter() - begun

    def sample(self, **fields: Any) -> Sample:
        """Run a job, and return its seconds until its images were here, with the parts of them.

        Raises:
            RuntimeError: it did not complete.
        """
        begun = time.perf_counter()
        job = self.ask("POST", f"/api/v1/generate?wait={_TIMEOUT_SECONDS}", self._fields | fields)
        seconds = time.perf_counter() - begun
        if job["status"] != "completed":
            raise RuntimeError(f"the job is {job['status']}: {job['error']}")
        return Sample(seconds=seconds, **self.timings(job["id"]))

    def timings(self, job: str) -> dict[str, float]:
        """Return what the server noted of a job that has completed; no answer over HTTP has it."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            [(text,)] = database.execute("SELECT timings FROM jobs WHERE id = ?", (job,))
        found: dict[str, float] = json.loads(text)
        return found
