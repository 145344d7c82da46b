"""Reading nvidia-smi's XML, complete or not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from machines import UUID, WHOLE, XML

from llmft_cli.gpu import nvidia_smi as smi
from llmft_cli.gpu.nvidia_smi import Details, GpuProcess, NoAnswer, SmiReport


def parsed(xml: str) -> SmiReport:
    return smi.parse(xml.encode())


def test_all_that_a_card_tells() -> None:
    assert parsed(XML) == SmiReport("12.8", {UUID: Details(WHOLE.processes, "disabled", "enabled", "Hopper")})


@pytest.mark.parametrize("shown", ["N/A", "[N/A]", "[Not Supported]", "Insufficient Permissions", "", "Unknown Error"])
def test_what_a_card_does_not_tell_is_none(shown: str) -> None:
    mute = XML.replace("Enabled", shown).replace("Disabled", shown).replace("3072 MiB", shown).replace("12.8", shown)
    assert parsed(mute) == SmiReport(
        None, {UUID: Details([GpuProcess(4711, "python3", None), GpuProcess(812, None, None)], None, None, "Hopper")}
    )


def test_elements_that_another_driver_leaves_out() -> None:
    bare = f"<nvidia_smi_log><gpu><uuid>{UUID}</uuid><processes><process_info/></processes></gpu></nvidia_smi_log>"
    assert parsed(bare) == SmiReport(None, {UUID: Details([], None, None)})


def test_a_process_name_cannot_break_out_of_its_line() -> None:
    names = parsed(XML.replace("/usr/bin/python3", "/opt/my\nname\tis  long")).details[UUID].processes
    assert names[0].name == "my name is long"


def test_a_process_name_that_xml_does_not_allow() -> None:
    """One process with an odd name would hide all the others."""
    odd = smi.parse(XML.encode().replace(b"/usr/bin/python3", b"\x1b[31m\xff"))
    assert odd.details[UUID].processes[0].name == "?[31m\ufffd"
    assert odd.newest_cuda == "12.8"


@pytest.mark.parametrize("output", ["", "No devices were found", "\x00\xff", "<nvidia_smi_log>", "<html></html>"])
def test_no_xml_is_nothing(output: str) -> None:
    assert parsed(output) == SmiReport(None, {})


def test_through_the_program(nvidia_smi: Any) -> None:
    nvidia_smi("", xml=XML)
    assert smi.query_nvidia_smi() == parsed(XML)


def test_without_the_program(nvidia_smi: Any) -> None:
    assert smi.query_nvidia_smi() == SmiReport()


def test_a_program_that_hangs_is_not_waited_for(nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smi, "TIME_LIMIT_SECONDS", 0.2)
    nvidia_smi("", before="exec /bin/sleep 60")
    started = time.monotonic()
    with pytest.raises(NoAnswer):
        smi.query_nvidia_smi()
    assert time.monotonic() - started < 20
