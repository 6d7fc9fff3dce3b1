# SPDX-License-Identifier: Apache-2.0
"""Tasks. All run in the environment that nox itself runs in; `make` has a name for each."""

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


def module(session: nox.Session, *arguments: str) -> None:
    """Run a module with this interpreter, so that no PATH has to be set."""
    session.run(sys.executable, "-m", *arguments, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    module(session, "ruff", "check", ".")
    module(session, "ruff", "format", "--check", ".")
    module(session, "codespell_lib")


@nox.session
def types(session: nox.Session) -> None:
    module(session, "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    # Threads that wait for each other must not spin: the other worker needs the core.
    session.env["OMP_WAIT_POLICY"] = "passive"
    module(session, "pytest", "-q", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session
def rtl(session: nox.Session) -> None:
    module(session, "pytest", "-m", "rtl", *session.posargs)


@nox.session
def exhaustive(session: nox.Session) -> None:
    module(session, "pytest", "-m", "exhaustive", *session.posargs)
