"""Settings: what a file may contain, what it means, and how every mistake is reported.

The broken files are in tests/broken. The first lines of each hold the expected messages, as `# expect: LINE: key:
what`. Those in tests/broken/import are valid for this room: their mistakes only show when the application is imported.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.tools import settings_page
from forkd.errors import ConfigError, Exit, Problem
from forkd.kernel.address import Address
from forkd.settings import config, reading
from forkd.settings.config import Changes, Source, changes, from_options, load
from forkd.settings.schema import (
    Key,
    Listen,
    LogSettings,
    MasterSettings,
    Rpcbind,
    ServiceSettings,
    Settings,
    Workers,
    keys,
)

TESTS = Path(__file__).parents[1]
HOME = TESTS.parent
BROKEN = sorted(TESTS.joinpath("broken").glob("*.toml"))
TO_IMPORT = sorted(TESTS.joinpath("broken/import").glob("*.toml"))

LEAST = """
[service.echo]
app = "forkd.services:echo"
listen = "127.0.0.1:7007"
"""


def expected(file: Path) -> list[str]:
    if file.name == "empty.toml":  # not even a comment
        return ["1: service: is missing: write a table [service.NAME] with app and listen"]
    lines = file.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    return [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]


def read(tmp_path: Path, text: str, *, cores: int = 4) -> Settings:
    file = tmp_path / "forkd.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, cores=cores)


def options(app: str = "shop.web:shout", *sets: str, cores: int = 2, **given: Any) -> Settings:
    usual: dict[str, Any] = {"name": None, "listen": ["*:0"], "workers": None, "worker": None, "folder": Path("/srv")}
    return from_options(app, sets=sets, cores=cores, **{**usual, **given})


def mistakes(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


# Broken files


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_a_broken_file_is_refused_with_every_mistake_and_its_line(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, cores=2)
    assert mistakes(error) == [f"{file}:{what}" for what in expected(file)]
    assert error.value.exit_status == Exit.CONFIG


def test_there_are_broken_files_of_each_kind() -> None:
    assert len(BROKEN) >= 40
    assert len(TO_IMPORT) == 6


@pytest.mark.parametrize("file", TO_IMPORT, ids=lambda file: file.stem)
def test_a_file_with_a_broken_application_is_sound_until_it_is_imported(file: Path) -> None:
    service = load(file, cores=2).services["echo"]
    assert service.path.resolve() == TESTS / "broken/apps"
    line, key = re.findall(r"# expect: (\d+): (\S+)", file.read_text())[0]
    assert load(file, cores=2).problem(key, "").line == int(line)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("missing.toml", "cannot be read: no such file"),
        ("", "cannot be read: it is a folder"),
        ("file/forkd.toml", "cannot be read: Not a directory"),
        ("nul\0", "cannot be read: embedded null byte"),
        ("long", "is longer than 1 MiB: this is not a settings file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "long").write_bytes(b"#" * (config.MAX_BYTES + 1))
    path = f"{tmp_path}/{name}"
    with pytest.raises(ConfigError) as error:
        load(path, cores=2)
    assert mistakes(error) == [f"{path}: {what}".replace("\0", "\\x00")]


def test_a_file_of_exactly_the_greatest_length_is_read(tmp_path: Path) -> None:
    text = LEAST + "#"
    assert read(tmp_path, text + "x" * (config.MAX_BYTES - len(text))).services


def test_a_text_that_ends_early_is_reported_on_its_last_line(tmp_path: Path) -> None:
    for text in ("a = 1\nb = ", "a = 1\nb = [\n"):
        with pytest.raises(ConfigError) as error:
            read(tmp_path, text)
        assert [problem.line for problem in error.value.problems] == [2]


def test_long_values_are_shortened_in_messages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, LEAST + f'worker = "{"w" * 1000}"\n{"k" * 1000} = 1\npath = ""\nuser = "{"é" * 300}"\n')
    assert [len(problem.what) < 200 and len(problem.key) <= 203 for problem in error.value.problems] == [True] * 4


TEXTS = st.sampled_from(["", "-", "sync", "a:b", "*:0", "unix:/run/x", "0660", "root", "é\n\x00"])
NUMBERS = st.sampled_from([0, -0.0, -1, 1, 2.5, 1024, 2**80, float("nan"), float("inf"), True])
NAMES = st.sampled_from(
    [name for kind in (ServiceSettings, MasterSettings, Listen, Workers, Rpcbind) for name in keys(kind)] + ["x\ny"]
)
PLAIN = TEXTS | NUMBERS | st.sampled_from([[], {}, [[[]]], datetime.time(1, 2)])
ANYTHING = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(NAMES, PLAIN, max_size=3)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, ANYTHING, max_size=5), st.dictionaries(NAMES, ANYTHING, max_size=2))
def test_whatever_a_table_holds_the_answer_is_settings_or_mistakes(service: Any, master: Any) -> None:
    service = {"app": "a:b", "listen": "*:1"} | service
    told: tuple[Problem, ...] = ()
    try:
        reading.read("file", Path("/srv"), {"service": {"echo": service}, "master": master}, {"": 1}, 2)
    except ConfigError as error:
        told = error.problems
    assert all(problem.key and problem.what.isprintable() for problem in told)


# Valid files


def test_the_least_file_means_the_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, LEAST, cores=3)
    assert found.file == f"{tmp_path}/forkd.toml"
    assert found.master == MasterSettings()
    assert found.services == {
        "echo": ServiceSettings(
            name="echo",
            app="forkd.services:echo",
            path=tmp_path,
            listen=(Listen(address=Address("127.0.0.1", 7007)),),
            workers=Workers(min=3, max=3),
        )
    }


def test_the_defaults_are_those_of_the_contract() -> None:
    service = options().services["shout"]
    assert (service.backlog, service.worker, service.threads, service.rpcbind) == (1024, "sync", 0, None)
    assert (service.request_timeout, service.read_timeout, service.idle_timeout) == (30, 20, 60)
    assert (service.write_timeout, service.boot_timeout, service.drain_timeout) == (30, 30, 300)
    assert (service.max_requests, service.max_age, service.max_memory) == (0, 0, 0)
    assert (service.user, service.group) == (None, None)
    assert MasterSettings() == MasterSettings(
        user=None, group=None, control=None, pidfile=None, stop_timeout=30, log=LogSettings()
    )
    assert LogSettings() == LogSettings(level="info", format="text", file="-")


def test_a_full_file_sets_every_value(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [master]
        user = "forkd"
        group = "daemon"
        control = "/run/forkd/control.sock"
        pidfile = "run/forkd.pid"
        stop_timeout = 2.5
        log = { level = "debug", format = "json", file = "log/forkd.log" }

        [service."a.b-c_1"]
        app = "shop.web:Shop.shout"
        path = "code"
        listen = [
            "*:7000",
            { address = "unix:/run/echo.sock", mode = "0660", user = "echo", group = "www-data" },
            { address = "[::1]:7000" },
        ]
        backlog = 65535
        worker = "event"
        threads = 8
        workers = { min = 2, max = 16, spare = 16 }
        request_timeout = 0
        read_timeout = 0.25
        idle_timeout = 2678400
        write_timeout = 1
        boot_timeout = 0.1
        drain_timeout = 1e3
        rpcbind = { program = 0x20049001, version = 2 }
        max_requests = 1000
        max_age = 86400
        max_memory = 512
        user = "shop"
        group = "100"
        """,
    )
    assert found.master == MasterSettings(
        user="forkd",
        group="daemon",
        control=Path("/run/forkd/control.sock"),
        pidfile=tmp_path / "run/forkd.pid",
        stop_timeout=2.5,
        log=LogSettings(level="debug", format="json", file=f"{tmp_path}/log/forkd.log"),
    )
    assert found.services["a.b-c_1"] == ServiceSettings(
        name="a.b-c_1",
        app="shop.web:Shop.shout",
        path=tmp_path / "code",
        listen=(
            Listen(address=Address("*", 7000)),
            Listen(address=Address("/run/echo.sock", 0, "unix"), mode=0o660, user="echo", group="www-data"),
            Listen(address=Address("::1", 7000)),
        ),
        backlog=65535,
        worker="event",
        threads=8,
        workers=Workers(min=2, max=16, spare=16),
        request_timeout=0,
        read_timeout=0.25,
        idle_timeout=2678400,
        write_timeout=1,
        boot_timeout=0.1,
        drain_timeout=1000,
        rpcbind=Rpcbind(program=0x20049001, version=2),
        max_requests=1000,
        max_age=86400,
        max_memory=512,
        user="shop",
        group="100",
    )
    assert found.problem("service.a.b-c_1.workers.max", "").line == 21
    assert found.problem("service.a.b-c_1.listen[2]", "").line == 16


def test_services_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = "".join(LEAST.replace("echo]", f"{name}]").replace("7007", "0") for name in ("zeta", "alpha", "mid"))
    assert list(read(tmp_path, text).services) == ["zeta", "alpha", "mid"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5", Workers(min=5, max=5)),
        ("{ max = 5 }", Workers(min=1, max=5, spare=0)),
        ("{ min = 5, max = 5, spare = 2 }", Workers(min=5, max=5, spare=2)),
    ],
)
def test_workers_are_a_number_or_a_table(tmp_path: Path, written: str, meant: Workers) -> None:
    assert read(tmp_path, LEAST + f"workers = {written}").services["echo"].workers == meant


@pytest.mark.parametrize(("cores", "workers"), [(0, 1), (1, 1), (64, 64), (5000, 1024)])
def test_there_is_one_worker_per_core_within_bounds(tmp_path: Path, cores: int, workers: int) -> None:
    assert read(tmp_path, LEAST, cores=cores).services["echo"].workers == Workers(min=workers, max=workers)


def test_a_listener_may_be_one_table_and_ports_of_the_kernels_choice_may_repeat(tmp_path: Path) -> None:
    one = read(tmp_path, LEAST.replace('"127.0.0.1:7007"', '{ address = "unix:/run/echo", mode = "600" }'))
    assert one.services["echo"].listen == (Listen(address=Address("/run/echo", 0, "unix"), mode=0o600),)
    two = read(tmp_path, LEAST.replace('"127.0.0.1:7007"', '["*:0", "*:0"]'))
    assert len(two.services["echo"].listen) == 2


def test_rpcbind_is_for_ports_and_the_kernel_may_choose_them(tmp_path: Path) -> None:
    text = LEAST.replace('"127.0.0.1:7007"', '["unix:/run/echo", "127.0.0.1:0"]') + "rpcbind = { program = 1 }"
    assert read(tmp_path, text).services["echo"].rpcbind == Rpcbind(program=1, version=1)


def test_a_later_stage_can_name_the_line_of_a_mistake(tmp_path: Path) -> None:
    found = read(tmp_path, LEAST)
    error = found.error("service.echo.app", "there is no module 'shop'")
    assert error.problems == (Problem(found.file, 3, "service.echo.app", "there is no module 'shop'"),)
    assert found.problem("service.echo.workers.max", "").line == 2  # not in the file: its table's line
    assert found.problem("master.user", "").line == 1


def test_a_service_runs_as_itself_or_as_the_master_says() -> None:
    found = options("a:b", "master.user=forkd", "master.group=daemon", "user=shop")
    assert found.runs_as(found.services["b"]) == ("shop", "daemon")
    found = options("a:b")
    assert found.runs_as(found.services["b"]) == (None, None)


# The command line


def test_options_mean_the_same_as_a_file() -> None:
    found = options(
        "shop.web:shout",
        "idle_timeout=5",
        "workers.max=8",
        "workers.min = 2",
        "master.log.level=debug",
        "master.control=run/control",
        "rpcbind={ program = 7 } # seven",
        "path=code",
        name="shop",
        listen=["127.0.0.1:0", "unix:@shop"],
        worker="event",
    )
    assert found.file == config.COMMAND_LINE
    assert found.master == MasterSettings(control=Path("/srv/run/control"), log=LogSettings(level="debug"))
    assert found.services == {
        "shop": ServiceSettings(
            name="shop",
            app="shop.web:shout",
            path=Path("/srv/code"),
            listen=(Listen(address=Address("127.0.0.1", 0)), Listen(address=Address("@shop", 0, "unix"))),
            worker="event",
            workers=Workers(min=2, max=8),
            idle_timeout=5,
            rpcbind=Rpcbind(program=7),
        )
    }


def test_workers_come_from_the_option_or_the_cores() -> None:
    assert options(workers=7).services["shout"].workers == Workers(min=7, max=7)
    assert options(cores=2).services["shout"].workers == Workers(min=2, max=2)
    assert options("a:b", "workers=3", workers=7).services["b"].workers == Workers(min=3, max=3)


@pytest.mark.parametrize(
    ("app", "name"), [("a:b", "b"), ("a.b:c.d", "d"), ("a:_private_", "private_"), ("a:été", "t"), ("a:é", "service")]
)
def test_a_service_without_a_name_has_that_of_its_function(app: str, name: str) -> None:
    assert list(options(app).services) == [name]


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("plain", "plain"),
        ('"quoted"', "quoted"),
        ("", ""),
        ("a = b", "a = b"),
        ("1\nrest = 2", "1\nrest = 2"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_value_that_is_not_toml_is_a_string(value: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        options("a:b", f"backlog={value}")
    assert f'not the string "{meant[:60]}'.replace("\n", "\\n") in str(error.value)


@pytest.mark.parametrize(
    ("given", "sets", "told"),
    [
        ({"listen": []}, [], "--listen: is missing: write an address"),
        ({"listen": ["*:0", "nowhere"]}, [], "service.b.listen[1]: 'nowhere' has no port"),
        ({"listen": ["*:7"]}, ["listen=7"], "service.b.listen: must be an address"),
        ({"workers": 0}, [], "service.b.workers: must be a whole number from 1 to 1024"),
        ({"worker": "thread"}, [], 'service.b.worker: must be "sync" or "event"'),
        ({"name": "a b"}, [], "service.a b: a service name is"),
        ({"name": ""}, [], "service.: a service name is"),
        ({"workers": 2}, ["workers.max=8"], "workers.max: workers is already 2, not a table"),
        ({}, ["backlog"], '--set the string "backlog": write KEY=VALUE'),
        ({}, ["=5"], '--set the string "=5": write KEY=VALUE'),
        ({}, ["bcklog=5"], 'service.b.bcklog: unknown key; did you mean "backlog"?'),
        ({}, ["master.lgo.level=info"], 'master.lgo: unknown table; did you mean "log"?'),
        ({}, ["path=/\udcff"], r'the string "path=/\udcff" is not UTF-8'),
    ],
)
def test_a_mistake_in_the_options_is_reported_like_one_in_a_file(
    given: dict[str, Any], sets: list[str], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        options("a:b", *sets, **given)
    assert mistakes(error)[0].startswith(f"command line: {told}")
    assert len(mistakes(error)) == 1


def test_every_mistake_in_the_options_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        options("nothing", "nonsense", "threads=many", listen=[], workers=0)
    assert [problem.key for problem in error.value.problems] == [
        "",
        "service.nothing.app",
        "--listen",
        "service.nothing.threads",
        "service.nothing.workers",
    ]


# Reload


def test_nothing_changed() -> None:
    assert changes(options(), options()) == Changes((), (), (), ())


def test_services_come_go_and_change(tmp_path: Path) -> None:
    def file(*services: tuple[str, str]) -> Settings:
        return read(tmp_path, "".join(f'[service.{name}]\napp = "{app}"\nlisten = "*:0"\n' for name, app in services))

    old = file(("stays", "a:a"), ("goes", "a:b"), ("changes", "a:c"))
    new = file(("comes", "a:d"), ("changes", "a:x"), ("stays", "a:a"))
    assert changes(old, new) == Changes(restart=(), added=("comes",), removed=("goes",), changed=("changes",))


@pytest.mark.parametrize("key", ["control", "pidfile"])
def test_some_keys_want_a_restart(key: str) -> None:
    assert changes(options(), options("shop.web:shout", f"master.{key}=x")).restart == (f"master.{key}",)


def test_the_log_and_the_stop_timeout_want_none() -> None:
    new = options("shop.web:shout", "master.log.level=debug", "master.stop_timeout=5")
    assert changes(options(), new) == Changes((), (), (), ())


# Documents that repeat the list of settings


def test_a_source_reads_its_settings_again(tmp_path: Path) -> None:
    path = tmp_path / "forkd.toml"
    source = Source(2, str(path))
    for size in (3, 4):
        path.write_text(f'[service.echo]\napp = "a:b"\nlisten = "127.0.0.1:7"\nworkers = {size}\n')
        assert source.read().services["echo"].workers.max == size
    options = Source(2, app="a:b", listen=("127.0.0.1:7",), sets=("idle_timeout=5",), folder=str(tmp_path))
    service = options.read().services["b"]
    assert (service.workers.max, service.idle_timeout, service.path) == (2, 5, tmp_path)


def test_the_reference_page_is_that_of_the_program() -> None:
    page = HOME / "docs/reference/settings.md"
    assert page.read_text() == settings_page.reference(), "run: make reference"


SAMPLE = HOME / "etc/forkd.toml"


def test_the_sample_serves_the_small_services_on_loopback() -> None:
    found = load(SAMPLE, cores=2)
    ports = {"echo": 7007, "discard": 7009, "chargen": 7019, "qotd": 7017, "daytime": 7013, "time": 7037}
    assert {name: service.listen for name, service in found.services.items()} == {
        name: (Listen(address=Address("127.0.0.1", port)),) for name, port in ports.items()
    }
    assert {service.app for service in found.services.values()} == {f"forkd.services:{name}" for name in ports}
    assert found.services["echo"].workers == Workers(min=2, max=32, spare=1)
    assert found.master == MasterSettings()


def sample_keys() -> dict[str, dict[str, str]]:
    """Returns the keys of each table in the sample, including those in comments, with their text."""
    tables: dict[str, dict[str, str]] = {}
    table: dict[str, str] = {}
    for line in SAMPLE.read_text().splitlines():
        if header := re.fullmatch(r"\[(.*)\]", line):
            table = tables.setdefault(header[1], {})
        elif pair := re.fullmatch(r"#?(\w+) = (.*)", line):
            table[pair[1]] = pair[2]
    return tables


@pytest.mark.parametrize(
    ("table", "key"),
    [
        pytest.param(table, key, id=f"{table}.{key.name}")
        for table, kind in (("master", MasterSettings), ("master.log", LogSettings), ("service.echo", ServiceSettings))
        for key in keys(kind).values()
        if key.meaning
    ],
)
def test_the_sample_shows_every_key_with_its_default(table: str, key: Key) -> None:
    written = sample_keys()[table][key.name]
    defaults = {"master": MasterSettings(), "master.log": LogSettings(), "service.echo": options().services["shout"]}[
        table
    ]
    if f"\n#{key.name} = " not in SAMPLE.read_text():
        assert key.required or key.name == "workers"
    elif written.endswith("# example"):
        assert getattr(defaults, key.name) in (None, Path("/srv"))  # a value that no file can hold
    else:
        default = re.split(r"\s+#", written)[0]
        assert default == key.default
        assert tomllib.loads(f"x = {default}")["x"] == getattr(defaults, key.name)


def test_the_examples_in_the_sample_hold(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(\w+ = )", r"\1", SAMPLE.read_text())
    found = read(tmp_path, text.replace("threads = 0", 'threads = 2\nworker = "event"').replace('worker = "sync"', ""))
    assert found.services["echo"].rpcbind == Rpcbind(program=0x20049001, version=1)
    assert found.master.control == Path("/run/forkd/control.sock")
