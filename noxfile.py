# SPDX-License-Identifier: Apache-2.0
"""Tasks. All run in the environment that nox itself runs in; `make` has a name for each."""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def rtl(session: nox.Session) -> None:
    session.run("pytest", "-m", "rtl", *session.posargs)


@nox.session
def exhaustive(session: nox.Session) -> None:
    session.run("pytest", "-m", "exhaustive", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    session.run("python", "-m", "build", "--outdir", "dist")
