"""Starting a host and running a job on it, with "local" and with an emulator that is a shell script."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.hostlab import bochs, catalogue, cli, job, qemu, run
from scripts.hostlab.catalogue import Host
from scripts.hostlab.errors import HostsError
from scripts.hostlab.expected import Expected
from scripts.hostlab.machine import Start
from scripts.hostlab.protocol import Report
from scripts.hostlab.several import run_several
from scripts.hostlab.watchdog import Limits

LISTENER = run.Listener(lambda host, result: None, lambda host, line: None, lambda text: None)
AMD, INTEL = catalogue.find("amd")[0], catalogue.find("intel")[0]


class TestCatalogue:
    def test_all_is_every_host_in_order(self) -> None:
        names = [host.name for host in catalogue.find("all")]
        assert names == ["local", "amd", "intel", "intel-no-ug", "intel-no-ept", "amd-bochs"]

    def test_an_unknown_host_is_told(self) -> None:
        with pytest.raises(HostsError, match="no host 'amb': local, amd"):
            catalogue.find("amb")


class TestQemu:
    def test_one_cpu_and_files_with_commas(self, tmp_path: Path) -> None:
        place = tmp_path / "a,b"
        start = qemu.start(AMD, tmp_path / "vmlinux", tmp_path / "initrd", place)
        words = list(start.command)
        assert words[words.index("-smp") + 1] == "1"
        assert f"file:{tmp_path}/a,,b/console.log" in words
        assert start.console == place / "console.log"

    def test_it_ends_by_itself_if_nobody_watches(self, tmp_path: Path) -> None:
        words = list(qemu.start(AMD, tmp_path, tmp_path, tmp_path).command)
        assert words[0] == "timeout"
        assert int(words[3]) > AMD.limit

    def test_a_shell_has_our_terminal(self, tmp_path: Path) -> None:
        words = list(qemu.start(AMD, tmp_path, tmp_path, tmp_path, interactive=True).command)
        assert "mon:stdio" in words
        assert "HOSTLAB_SHELL=1" in words[words.index("-append") + 1]


class TestBochs:
    @pytest.fixture(autouse=True)
    def bios(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bios").touch()
        monkeypatch.setattr(bochs, "_BIOS", (str(tmp_path / "bios"),))
        monkeypatch.setattr(bochs, "_VGA_BIOS", (str(tmp_path / "missing"), str(tmp_path / "bios")))

    def test_the_configuration_names_what_the_host_is(self, tmp_path: Path) -> None:
        text = bochs.configuration(INTEL, tmp_path, 77, "mode=file, dev=a", "mode=file, dev=b")
        assert "cpu: model=broadwell_ult, count=1" in text
        assert "cylinders=77, heads=16, spt=63" in text
        assert "com2: enabled=1, mode=file, dev=b" in text

    @pytest.mark.parametrize("name", ["a b", "a,b", 'a"b'])
    def test_names_it_cannot_use_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(HostsError, match="set KVMPY_CACHE"):
            bochs.configuration(INTEL, tmp_path / name, 1, "", "")

    def test_a_missing_bios_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bochs, "_BIOS", ("/no/BIOS-bochs-latest",))
        with pytest.raises(HostsError, match="no BIOS-bochs-latest; as root: apt-get install bochsbios"):
            bochs.configuration(INTEL, tmp_path, 1, "", "")


class TestJob:
    def test_a_script_survives_any_argument(self, tmp_path: Path) -> None:
        root = tmp_path / "it's here"
        root.mkdir()
        project = job.Project(root, Path("/usr/bin/python3"))
        words = ["printf", "%s\n", "a b", "$HOME", "'", '"', "*", ""]
        script = job.script(project, job.command(words, "/dev/null"))
        done = subprocess.run(
            ["sh"], input=f"{script}pwd; echo $KVMPY_HOSTS_REPORT", capture_output=True, text=True
        )
        assert done.stdout.splitlines() == ["a b", "$HOME", "'", '"', "*", "", str(root), "/dev/null"]

    def test_the_suite_is_given_unless_a_part_of_it_is(self) -> None:
        project = job.Project(Path("/p"), Path("/python"))
        assert "tests/hosts" in job.pytest_suite(project, "r", ["-k", "x"]).command
        part = job.pytest_suite(project, "r", ["tests/hosts/test_a.py::b"]).command
        assert "tests/hosts" not in part

    def test_the_runner_fits_the_host(self) -> None:
        plan = run.Plan(job.Project(Path("/p"), Path("/python")), "suite", ["-x"])
        assert "pytest" in run.make_job(AMD, plan, "r").command
        assert "scripts.hostlab.inside.light" in run.make_job(INTEL, plan, "r").command
        assert run.make_job(INTEL, plan, "r").command[-1] == "-x"

    def test_the_runner_knows_the_host(self) -> None:
        plan = run.Plan(job.Project(Path("/p"), Path("/python")), "facts")
        environment = run.make_job(INTEL, plan, "/dev/x").environment
        assert environment["KVMPY_HOSTS_NAME"] == "intel"
        assert environment["KVMPY_HOSTS_REPORT"] == "/dev/x"
        assert 0 < int(environment["KVMPY_HOSTS_TEST_SECONDS"]) * 5 < INTEL.silence

    def test_no_source_tree_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(HostsError, match="isn't a source tree"):
            job.find_project(tmp_path)

    def test_init_is_a_script_that_a_shell_understands(self, root: Path) -> None:
        subprocess.run(["sh", "-n", str(root / "scripts" / "hostlab" / "init")], check=True)


class TestLocal:
    def test_facts(self) -> None:
        report = run.run(
            catalogue.find("local")[0], run.Plan(job.find_project(), "facts"), Expected({}), LISTENER
        )
        assert report.problems == []
        assert report.facts["kernel"] == os.uname().release

    def test_a_command_that_says_nothing_is_a_failure(self) -> None:
        lines: list[str] = []
        listener = LISTENER._replace(console=lambda host, line: lines.append(line))
        plan = run.Plan(job.find_project(), "command", ["sh", "-c", "echo hello; exit 3"])
        report = run.run(catalogue.find("local")[0], plan, Expected({}), listener)
        assert lines == ["hello"]
        assert report.failed
        assert report.last_lines == ["hello"]


class TestEmulator:
    """A host whose emulator is a shell script."""

    def start(self, script: str, monkeypatch: pytest.MonkeyPatch) -> Report:
        def set_up(host: Host, plan: run.Plan, place: Path, say: object) -> Start:
            report = place / "report.jsonl"
            report.unlink(missing_ok=True)
            command = ["sh", "-c", script.replace("REPORT", str(report)).replace("CONSOLE", str(place / "c"))]
            return Start(command, place / "c", report, place / "o", Limits(0.5, 10, 0.2))

        monkeypatch.setattr(run, "set_up", set_up)
        return run.run(AMD, run.Plan(job.find_project(), "facts"), Expected({}), LISTENER)

    def test_its_status_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = """echo '{"event": "end", "status": 0, "count": 0}' > REPORT; exit 1"""
        assert not self.start(script, monkeypatch).failed
        assert self.start("exit 0", monkeypatch).failed

    def test_a_silent_one_is_ended_and_its_last_lines_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.start("seq 50 > CONSOLE; sleep 60", monkeypatch)
        assert "without a sign of life" in report.problems[0]
        assert report.last_lines == [str(number) for number in range(31, 51)]

    def test_what_the_emulator_itself_says_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.start("echo cannot open display >&2", monkeypatch)
        assert report.last_lines == ["cannot open display"]

    def test_one_that_nobody_waits_for_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks = iter((False, False, True))
        monkeypatch.setattr(
            sys.modules[__name__], "LISTENER", LISTENER._replace(cancelled=lambda: next(looks))
        )
        report = self.start("while :; do echo more >> CONSOLE; sleep 0.1; done", monkeypatch)
        assert report.problems[0].startswith("cancelled after ")
        assert report.seconds < 8

    def test_a_host_runs_once_at_a_time(self) -> None:
        with (
            run.place_of(AMD),
            pytest.raises(HostsError, match="host amd is running already"),
            run.place_of(AMD),
        ):
            pass
        with run.place_of(AMD):
            pass


class TestSeveral:
    def test_emulators_run_side_by_side_and_this_machine_alone(self) -> None:
        meeting = threading.Barrier(2)
        running: list[str] = []
        seen: list[tuple[str, ...]] = []

        def one(host: Host, cancelled: object) -> Report:
            running.append(host.name)
            seen.append(tuple(running))
            if host.name in ("amd", "intel"):
                meeting.wait(20)
            running.remove(host.name)
            return Report(host)

        hosts = [catalogue.find(name)[0] for name in ("amd", "local", "intel")]
        reports = run_several(hosts, one, jobs=2)
        assert [report.host.name for report in reports] == ["amd", "local", "intel"]
        assert seen[0] == ("local",)

    def test_no_more_than_asked_for(self) -> None:
        running: list[str] = []

        def one(host: Host, cancelled: object) -> Report:
            running.append(host.name)
            assert len(running) == 1
            running.remove(host.name)
            return Report(host)

        assert len(run_several(catalogue.HOSTS, one, jobs=1)) == len(catalogue.HOSTS)

    def test_what_one_raises_ends_the_others(self) -> None:
        ended: list[str] = []
        begun = threading.Event()

        def one(host: Host, cancelled: Callable[[], bool]) -> Report:
            if host.name == "amd":
                begun.wait(20)
                raise HostsError("no kernel")
            begun.set()
            while not cancelled():
                time.sleep(0.01)
            ended.append(host.name)
            return Report(host)

        with pytest.raises(HostsError, match="no kernel"):
            run_several([AMD, INTEL], one, jobs=2)
        assert ended == ["intel"]


class TestCommandLine:
    def test_an_unknown_host_is_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["run", "nowhere"]) == 2
        assert capsys.readouterr().err.startswith("scripts/hosts: there is no host 'nowhere'")

    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list"]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in catalogue.NAMES)
        assert "none yet: scripts/hosts prepare" in out

    def test_status_and_tables_of_a_run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        plans: list[run.Plan] = []

        def fake(host: Host, plan: run.Plan, expected: Expected, listener: run.Listener) -> Report:
            plans.append(plan)
            report = Report(host)
            report.finish(1.0)
            if host.name != "amd":
                report.problems.clear()
            return report

        monkeypatch.setattr(cli, "run", fake)
        monkeypatch.setattr(cli.cache, "write", lambda path, data: None)
        assert cli.main(["run", "intel", "--", "-k", "x or y"]) == 0
        assert plans[-1].arguments == ["-k", "x or y"]
        assert cli.main(["run", "all"]) == 1
        assert "amd           the report is incomplete" in capsys.readouterr().out
        assert cli.main(["run", "local", "--repeat", "3"]) == 0
        assert len(plans) == 1 + 6 + 3
        assert cli.main(["run", "local", "intel", "local"]) == 0
        assert len(plans) == 1 + 6 + 3 + 2, "each once"

    def test_the_program_itself(self, root: Path) -> None:
        done = subprocess.run(
            [str(root / "scripts" / "hosts"), "--help"], capture_output=True, text=True, check=True
        )
        assert "list|prepare|run|shell" in done.stdout
