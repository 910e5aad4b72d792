"""Environments for the tools that netdyn is compared with, one per tool, under `build/peers`.

These tools are not dependencies of netdyn. Each environment sees the packages of the environment that runs this file,
and netdyn's sources, so torch is not installed again and both sides use the same torch. Anything else that the tool
needs is installed with the versions of `constraints.txt`. `make clean` removes the environments.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from pairs import Row

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "peers"
#: Requirements for pip; devinterp 2 no longer has `estimate_learning_coeff_with_summary`.
PEERS = {"foolbox": "foolbox", "delve": "delve", "devinterp": "devinterp==1.3.2", "pyhessian": "pyhessian"}
_MINUTES = 10


class PeerError(RuntimeError):
    """A peer that cannot be installed."""


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is created if it does not exist.

    Raises:
        PeerError: If it cannot be created, with the last line of output.
    """
    home = HOME / peer
    made = home / "bin" / "python"
    stamp = home / ".installed"
    asked = f"{PEERS[peer]} {sys.executable}"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != asked:
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        packages = _said(made, "import sysconfig; print(sysconfig.get_path('purelib'))")
        seen = [sysconfig.get_path("purelib"), str(ROOT / "src")]
        (Path(packages) / "netdyn-and-its-packages.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
        install = (
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "-c",
            str(ROOT / "constraints.txt"),
        )
        _run(str(made), *install, PEERS[peer])
        stamp.write_text(asked, encoding="utf-8")
    return made


def entered(peer: str) -> bool:
    """Whether this process runs in a peer's environment."""
    return Path(sys.prefix).resolve() == (HOME / peer).resolve()


def inside(peer: str, what: str, against: str) -> list[Row] | None:
    """None inside the peer's environment; otherwise run this program there, or return a row with the reason why not."""
    if entered(peer):
        return None
    try:
        made = python(peer)
    except PeerError as error:
        return [Row(what, against, note=f"{PEERS[peer]} could not be installed: {error}")]
    os.execv(made, [str(made), *sys.argv])
    raise AssertionError("unreachable")


def version(peer: str) -> str:
    """The peer's version, inside its environment."""
    from importlib.metadata import version as installed

    return f"{peer} {installed(peer)}"


def failed(peer: str, what: str, against: str, error: Exception) -> list[Row]:
    """A row that reports how a peer failed."""
    return [Row(what, against, note=f"{version(peer)} fails here: {type(error).__name__}: {error}")]


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * _MINUTES)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr + error.stdout).splitlines() if line.strip()]
        raise PeerError(lines[-1] if lines else f"exit status {error.returncode}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(str(error)) from error


def _said(interpreter: Path, code: str) -> str:
    return subprocess.run([str(interpreter), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        print(python(name))
