"""Who could change a file, the way to it, and what a user cannot read, with real files and rights."""

from __future__ import annotations

import grp
import os
import pwd
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkd.cli import check
from forkd.errors import ConfigError
from forkd.kernel.accounts import Identity
from forkd.security import reach, trust
from forkd.security.paths import files, way
from forkd.security.privileges import become
from forkd.security.trust import Weakness, weaknesses
from forkd.settings import config
from forkd.settings.config import Source
from tests.seams.test_process import in_child

NOBODY = pwd.getpwnam("nobody")
OURS = {0, os.geteuid()}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yields a folder that others may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made).resolve()


def make(path: Path, mode: int = 0o644) -> Path:
    path.write_text("")
    path.chmod(mode)
    return path


def weakness(path: str, trusted: set[int], *, whole: bool = False) -> Weakness | None:
    """Returns the first weakness, if any."""
    return next(weaknesses(path, trusted, whole=whole), None)


# The way to a file.


def test_every_folder_and_link_is_passed(folder: Path) -> None:
    (folder / "real").mkdir()
    make(folder / "real" / "file")
    (folder / "link").symlink_to("real/../real")
    (folder / "absolute").symlink_to(folder / "link" / "file")
    passed = [step.path for step in way(str(folder / "absolute"))]
    expected = ["absolute", "link", "real", "real", "real/file"]
    assert [path for path in passed if path.startswith(f"{folder}/")] == [f"{folder}/{each}" for each in expected]
    assert passed[0] == "/"
    assert [step.path for step in way(str(folder))] == passed[: len(folder.parts)]


def test_a_ring_of_links_ends(folder: Path) -> None:
    (folder / "one").symlink_to("other")
    (folder / "other").symlink_to("one")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        list(way(str(folder / "one")))


def test_an_applications_files_are_found_without_running_them(folder: Path) -> None:
    (folder / "package" / "inner").mkdir(parents=True)
    for each in ("package/__init__", "package/inner/__init__", "package/inner/module", "single"):
        (folder / f"{each}.py").write_text("raise SystemExit('this is run')")
    (folder / "bare").mkdir()
    make(folder / "bare" / "module.py")
    path = str(folder)
    inner = [f"{path}/package/__init__.py", f"{path}/package/inner/__init__.py", f"{path}/package/inner/module.py"]
    assert files("package.inner.module:name", path) == inner
    assert files("package:name", path) == inner[:1]
    assert files("single:name", path) == [f"{path}/single.py"]
    assert files("bare.module:name", path) == [f"{path}/bare/module.py"]  # a namespace package
    assert files("nowhere.module:name", path) == []
    assert files("json:name", path) == [sys.modules["json"].__file__]
    make(folder / "json.py")
    assert files("json:name", path) == [f"{path}/json.py"]


# Who could change it.


def test_what_only_trusted_ones_can_change(folder: Path) -> None:
    for mode in (0o600, 0o644, 0o444, 0o755):
        assert weakness(str(make(folder / f"{mode:o}", mode)), OURS) is None


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o602])
def test_a_file_that_everybody_may_write(folder: Path, mode: int) -> None:
    file = make(folder / "file", mode)
    found = weakness(str(file), OURS)
    assert found is not None
    assert found.path == str(file)
    assert f"other users can write to the file {file} (mode {mode:04o}): chmod " in found.what
    subprocess.run(found.what.rpartition(": ")[2].split(), check=True)
    assert weakness(str(file), OURS) is None


@root_only
def test_a_file_of_a_group(folder: Path) -> None:
    """Root's own group, and a group whose members are all trusted, include no other user."""
    file = make(folder / "file", 0o664)
    assert weakness(str(file), {0}) is None
    os.chown(file, 0, grp.getgrnam("daemon").gr_gid)  # its primary member is the user daemon
    found = weakness(str(file), {0})
    assert found is not None
    assert found.what.endswith(f"other users can write to the file {file} (mode 0664): chmod g-w {file}")
    assert weakness(str(file), {0, pwd.getpwnam("daemon").pw_uid}) is None
    os.chown(file, 0, 54321)  # no group has this number, but a process might
    assert weakness(str(file), {0}) is not None


@root_only
def test_an_access_control_list_counts(folder: Path) -> None:
    file = make(folder / "file", 0o644)
    # acl(5), as the kernel stores it (xattr(7)): the owner and the user nobody may read and write, all others read.
    anyone = 0xFFFFFFFF
    entries = [(1, 6, anyone), (2, 6, NOBODY.pw_uid), (4, 4, anyone), (0x10, 6, anyone), (0x20, 4, anyone)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(file, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"access control lists are not supported here: {error.strerror}")
    found = weakness(str(file), {0})
    assert found is not None
    assert found.what.endswith(f"(mode 0664): chmod g-w {file}")


@root_only
def test_a_file_of_somebody_else(folder: Path) -> None:
    file = make(folder / "file")
    os.chown(file, NOBODY.pw_uid, 0)
    found = weakness(str(file), {0})
    assert found is not None
    assert f"the file {file} belongs to the user nobody: chown root {file}" in found.what
    assert weakness(str(file), {0, NOBODY.pw_uid}) is None


@root_only
def test_a_link_of_somebody_else(folder: Path) -> None:
    make(folder / "file")
    (folder / "link").symlink_to("file")
    os.chown(folder / "link", NOBODY.pw_uid, 0, follow_symlinks=False)
    found = weakness(str(folder / "link"), {0})
    assert found is not None
    assert f"chown -h root {folder}/link" in found.what


def test_a_folder_on_the_way(folder: Path) -> None:
    (folder / "open").mkdir()
    file = make(folder / "open" / "file")
    (folder / "open").chmod(0o777)
    found = weakness(str(file), OURS)
    assert found is not None
    assert found.path == str(folder / "open")
    assert found.what.startswith(f"other users can write to the folder {folder}/open (mode 0777): chmod ")
    (folder / "open").chmod(0o1777)  # like /tmp: other users cannot replace this file
    assert weakness(str(file), OURS) is None
    assert weakness(str(folder / "open"), OURS, whole=True) is not None, "but others could create files beside it"


def test_what_is_not_there_is_nobodys(folder: Path) -> None:
    assert weakness(str(folder / "none" / "file"), OURS) is None


# Settings and applications.


def settings_of(folder: Path, extra: str = "", mode: int = 0o644) -> Source:
    (folder / "app").mkdir(exist_ok=True)
    make(folder / "app" / "application.py")
    (folder / "forkd.toml").write_text(
        f'{extra}\n[service.a]\napp = "application:a"\npath = "app"\nlisten = "127.0.0.1:0"\n'
    )
    (folder / "forkd.toml").chmod(mode)
    return Source(1, str(folder / "forkd.toml"))


def examined(source: Source) -> list[str]:
    """Returns the lines of the refusal, or else the warnings."""
    warnings: list[str] = []
    try:
        trust.examine(source, source.read(), warnings.append)
    except ConfigError as error:
        return str(error).splitlines()
    return warnings


@root_only
def test_settings_that_others_may_write_are_refused(folder: Path) -> None:
    file = folder / "forkd.toml"
    assert examined(settings_of(folder)) == []
    source = settings_of(folder, mode=0o666)
    why = f"{file}: root obeys this file, but other users can write to the file {file} (mode 0666): chmod o-w {file}"
    assert examined(source) == [f"{why} (--insecure starts anyway)"]
    assert examined(source._replace(insecure=True)) == [why]


@root_only
def test_an_application_that_others_may_write_is_refused(folder: Path) -> None:
    source = settings_of(folder)
    application = folder / "app" / "application.py"
    application.chmod(0o666)
    (folder / "app").chmod(0o777)
    found = examined(source)
    assert len(found) == 2
    assert all(
        line.startswith(f"{folder}/forkd.toml:3: service.a.app: other users can write to the ") for line in found
    )
    assert f"chmod o-w {folder}/app " in found[0]
    assert f"chmod o-w {application} " in found[1]


@root_only
def test_an_application_may_be_its_services_user_s_but_no_other_s(folder: Path) -> None:
    for extra, count in (("", 1), ('[master]\nuser = "daemon"', 1), ('[master]\nuser = "nobody"', 0)):
        source = settings_of(folder, extra)
        for each in (folder / "app", folder / "app" / "application.py"):
            os.chown(each, NOBODY.pw_uid, NOBODY.pw_gid)
        assert len(examined(source)) >= count, extra
        assert bool(examined(source)) is bool(count), extra


@root_only
def test_settings_that_belong_to_a_services_user_are_refused(folder: Path) -> None:
    """With them, an application could make itself root at the next reload."""
    source = settings_of(folder, '[master]\nuser = "nobody"')
    os.chown(folder / "forkd.toml", NOBODY.pw_uid, NOBODY.pw_gid)
    assert "belongs to the user nobody: chown root" in examined(source)[0]


@root_only
def test_what_the_caller_of_sudo_has_written_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = settings_of(folder)
    for each in (folder, folder / "forkd.toml", folder / "app", folder / "app" / "application.py"):
        os.chown(each, NOBODY.pw_uid, NOBODY.pw_gid)
    assert examined(source) != []
    monkeypatch.setenv("SUDO_UID", str(NOBODY.pw_uid))
    assert examined(source) == []


def test_whoever_is_not_root_serves_what_there_is(folder: Path) -> None:
    source = settings_of(folder, mode=0o666)

    def child() -> None:
        if os.geteuid() == 0:
            become(Identity(NOBODY.pw_uid, NOBODY.pw_gid, ()))
        assert examined(source) == []

    assert in_child(child) == 0


# What a user can read.


def needs_of(*paths: Path) -> list[reach.Need]:
    return [reach.Need("the thing", str(path), "move it") for path in paths]


@root_only
def test_the_folder_that_is_in_the_way_is_named(folder: Path) -> None:
    (folder / "closed" / "inner").mkdir(parents=True)
    file = make(folder / "closed" / "inner" / "file")
    (folder / "closed").chmod(0o700)
    secret = make(folder / "secret", 0o600)

    def child() -> None:
        become(Identity(NOBODY.pw_uid, NOBODY.pw_gid, ()))
        assert reach.obstacle(needs_of(folder)) == ""
        where = f"it may not enter the folder {folder}/closed (mode 0700, owner root); chmod o+x would open it"
        assert reach.obstacle(needs_of(folder, file)) == f"nobody cannot read the thing {file}: {where}; move it"
        where = f"it may not read the file {secret} (mode 0600, owner root); chmod o+r would open it"
        assert reach.obstacle(needs_of(secret)) == f"nobody cannot read the thing {secret}: {where}; move it"

    assert in_child(child) == 0


@root_only
def test_supplementary_groups_count(folder: Path) -> None:
    daemon = grp.getgrnam("daemon").gr_gid
    (folder / "theirs").mkdir()
    file = make(folder / "theirs" / "file", 0o640)
    (folder / "theirs").chmod(0o750)
    for each in (folder / "theirs", file):
        os.chown(each, 0, daemon)
    for groups, reached in (((), False), ((daemon,), True)):

        def child(groups: tuple[int, ...] = groups, reached: bool = reached) -> None:
            become(Identity(NOBODY.pw_uid, NOBODY.pw_gid, groups))
            assert (reach.obstacle(needs_of(file)) == "") is reached

        assert in_child(child) == 0


@root_only
def test_all_that_keeps_users_from_their_applications_is_told_at_once(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    make(folder / "closed" / "application.py")
    service = '[service.{}]\napp = "application:a"\npath = "closed"\nlisten = "127.0.0.1:{}"\nuser = "{}"\n'
    text = "".join(service.format(name, port, user) for name, port, user in (("a", 1, "nobody"), ("b", 2, "nemo")))
    (folder / "forkd.toml").write_text(text)
    found = check.out_of_reach(config.load(folder / "forkd.toml", cores=1))
    assert found["a"].key == "service.a.user"
    assert found["a"].line == 5
    assert found["a"].what.startswith("nobody cannot read ")
    assert found["b"].what.startswith("there is no user 'nemo' on this machine")
