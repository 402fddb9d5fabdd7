"""What forkd prints for wrong settings: exit status 78 and FILE:LINE: key, never a traceback of its own.

The first lines of each broken file hold the expected messages. `tests/rooms/test_config.py` checks the same against the
room alone.
"""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import pytest

from forkd.cli import main
from tests.server import FORKD, POWERLESS, program, running, setpriv_missing

BROKEN = Path(__file__).parents[1] / "broken"
PURE = sorted(BROKEN.glob("*.toml"))
TO_IMPORT = sorted(BROKEN.glob("import/*.toml"))
AS_PROGRAMS = PURE[::7]
SECONDS = 5.0  # far more than the fraction of a second that it takes

pytestmark = pytest.mark.slow


def expected(file: Path) -> list[str]:
    if not file.read_bytes():
        return ["1: service: is missing: write a table [service.NAME] with app and listen"]
    return re.findall(r"(?m)^# expect: (.*)$", file.read_bytes().decode("utf-8-sig", errors="replace"))


def names_forkd(text: str) -> list[str]:
    """Returns the frames of a traceback that belong to forkd or to its dependencies."""
    return re.findall(r'File ".*(?:/forkd/\w+\.py|site-packages/.*|<frozen .*)"', text)


# Invalid files.


@pytest.mark.parametrize("file", PURE, ids=lambda file: file.stem)
def test_check_reports_every_mistake(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["check", str(file)])
    assert ended.value.code == 78
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"{file}:{what}" for what in expected(file)]
    assert said.out == ""


def test_there_are_enough_of_them() -> None:
    assert len(PURE) >= 40
    assert len(AS_PROGRAMS) >= 10


@pytest.mark.parametrize("file", AS_PROGRAMS, ids=lambda file: file.stem)
def test_the_program_reports_the_same_at_once(file: Path) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = program("check", file.name, cwd=file.parent)
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{took:.2f} s, {worked:.2f} s of a processor: forkd check {file.name}")
    assert result.returncode == 78
    assert result.stderr.splitlines() == [f"{file.name}:{what}" for what in expected(file)]
    assert result.stdout == ""
    assert worked < SECONDS  # other processes took the rest of the time


@pytest.mark.parametrize("name", ["several", "not_utf8", "key_misspelt", "empty"])
def test_run_reports_the_same_and_leaves_nothing(name: str) -> None:
    file = BROKEN / f"{name}.toml"
    with running([file.name], BROKEN) as server:
        assert server.exited() == 78
        assert server.lines[:-1] == [f"{file.name}:{what}" for what in expected(file)]
        server.gone()


# Applications that cannot be imported.

WITH_TRACEBACK = {
    "cyclic_import": "cyclic_one.py",
    "exception_at_import": "raises.py",
    "syntax_error": "syntax_error.py",
}


def check_import(file: Path, status: int, said: list[str]) -> None:
    text = "\n".join(said)
    [words] = re.findall(r"(?m)^# says: (.*)$", file.read_text())
    [told] = [line for line in said if line.startswith(f"{file.name}:")]
    assert status == 78
    assert told.startswith(f"{file.name}:{expected(file)[0]}: ")
    assert words in text
    assert names_forkd(text) == []
    if file.stem in WITH_TRACEBACK:
        assert re.search(rf'(?m)^ *File ".*/apps/{WITH_TRACEBACK[file.stem]}", line \d+', text)
    else:
        assert "Traceback" not in text


def test_each_import_that_fails_is_here() -> None:
    assert len(TO_IMPORT) == 6
    assert WITH_TRACEBACK.keys() <= {file.stem for file in TO_IMPORT}


@pytest.mark.parametrize("file", TO_IMPORT, ids=lambda file: file.stem)
def test_check_imports_and_shows_the_applications_own_traceback(file: Path) -> None:
    result = program("check", file.name, cwd=file.parent)
    check_import(file, result.returncode, result.stderr.splitlines())
    assert result.stdout == ""


@pytest.mark.parametrize("file", TO_IMPORT, ids=lambda file: file.stem)
def test_run_shows_the_same_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    # The control socket goes into this folder, because the file names none.
    with running([file.name], file.parent, program=["env", f"RUNTIME_DIRECTORY={tmp_path}", *FORKD]) as server:
        check_import(file, server.exited(), server.lines)
        server.gone()
    assert list(tmp_path.iterdir()) == []


# Files that cannot be read at all.


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if reason := setpriv_missing():
        pytest.skip(reason)
    file = tmp_path / "forkd.toml"
    file.write_text("secret")
    file.chmod(0)
    result = program("check", str(file), cwd=Path("/"), before=POWERLESS)
    assert result.returncode == 78
    assert result.stderr == f"{file}: cannot be read: Permission denied\n"


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, command: str) -> None:
    result = program(command, str(tmp_path), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (78, f"{tmp_path}: cannot be read: it is a folder\n")
    result = program(command, "none.toml", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (78, "none.toml: cannot be read: no such file\n")


def test_other_commands_report_a_broken_file_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["reload"], ["stacks"], ["scale", "echo", "1"]):
        with pytest.raises(SystemExit) as ended:
            main.main([command[0], "-c", str(BROKEN / "key_misspelt.toml"), *command[1:]])
        assert ended.value.code == (1 if command == ["reload"] else 78)
        assert "key_misspelt.toml:" in capsys.readouterr().err


# Invalid options.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--listen: is missing"),
        (["--listen", "nowhere"], "service.echo.listen[0]: 'nowhere' has no port"),
        (["--listen", "*:0", "--workers", "0"], "service.echo.workers: must be a whole number from 1 to 1024"),
        (["--listen", "*:0", "--worker", "thread"], 'service.echo.worker: must be "sync" or "event"'),
        (["--listen", "*:0", "--set", "idel_timeout=1"], 'unknown key; did you mean "idle_timeout"?'),
        (["--listen", "*:0", "--name", "a b"], "service.a b: a service name is"),
    ],
)
def test_wrong_options_are_wrong_settings(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["run", "forkd.services:echo", *options])
    assert ended.value.code == 78
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("command line: ")
    assert told in line


# What else `forkd check` reports.


def test_check_ends_with_an_application_that_leaves_a_thread_behind(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nfrom forkd.services import echo\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    (tmp_path / "forkd.toml").write_text('[service.a]\napp = "threaded:echo"\nlisten = "127.0.0.1:0"\n')
    result = program("check", "forkd.toml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "forkd.toml: good, 1 service\n")


@pytest.mark.parametrize(
    ("code", "seconds", "what"),
    [
        ("import os; os._exit(0)", 30, "ended its process while it was imported"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 30, "ended its process while it was imported"),
        ("import sys; sys.exit('no way')", 30, "cannot be imported: SystemExit: no way"),
        ("import threading; threading.Event().wait()", 0.5, "was not imported within its boot_timeout of 0.5 s"),
    ],
    ids=["exits", "is killed", "raises SystemExit", "never ends"],
)
def test_check_reports_an_application_that_ends_its_process(
    tmp_path: Path, code: str, seconds: float, what: str
) -> None:
    (tmp_path / "application.py").write_text(code)
    (tmp_path / "forkd.toml").write_text(
        f'[service.a]\napp = "application:echo"\nlisten = "127.0.0.1:0"\nboot_timeout = {seconds}\n'
    )
    result = program("check", "forkd.toml", cwd=tmp_path)
    assert result.returncode == 78
    assert result.stderr.splitlines()[0] == f"forkd.toml:2: service.a.app: {what}"


def test_check_reports_unknown_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "forkd.toml"
    file.write_text('[service.a]\napp = "forkd.services:echo"\nlisten = "127.0.0.1:0"\nuser = "no-such-user"\n')
    with pytest.raises(SystemExit) as ended:
        main.main(["check", str(file)])
    assert ended.value.code == 78
    assert capsys.readouterr().err.startswith(f"{file}:4: service.a.user: there is no user 'no-such-user'")


def test_check_warns_of_limits_that_will_be_reached(tmp_path: Path) -> None:
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    if somaxconn >= 65535:
        pytest.skip("the kernel's limit is beyond any backlog here (net.core.somaxconn)")
    (tmp_path / "forkd.toml").write_text(
        f'[service.a]\napp = "forkd.services:echo"\nlisten = "127.0.0.1:0"\nworkers = 50\nbacklog = {somaxconn + 1}\n'
    )
    result = program("check", "forkd.toml", cwd=tmp_path, before=["prlimit", "--nofile=150"])
    assert result.returncode == 0
    assert f"warning: forkd.toml:5: service.a.backlog: {somaxconn + 1} is cut to {somaxconn}" in result.stderr
    assert "50 workers need 182 file descriptors, but only 150 are allowed" in result.stderr
