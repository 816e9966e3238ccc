"""Which board it is, and which of its rails add up."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace

from devit_contract.choices import BoardChoice
from devit_contract.errors import InputError
from devit_contract.machine import board_compatible, board_model
from devit_contract.wire.messages import Description
from devit_profiling.sensor.board_table import (
    AGX_ORIN,
    AGX_THOR,
    AGX_XAVIER,
    BOARDS,
    DRIVE_ORIN,
    IGX_ORIN,
    IGX_THOR,
    NANO,
    NANO_2GB,
    ORIN_NANO,
    ORIN_NX,
    THOR,
    TX1,
    TX2,
    TX2_NX,
    XAVIER_NX,
    Board,
)
from devit_profiling.sensor.boards import (
    BoardTotal,
    board_of,
    board_of_compatible,
    board_of_key,
    board_of_model,
    guess_board,
    total_mw,
    why_no_total,
)
from devit_profiling.sensor.sample import CoreLoad, Sample
from devit_profiling.sensor.sensor_lines import parse_hwmon_line, sample_line
from devit_profiling.sensor.tegrastats import parse_line
from devit_profiling.simulator.power import POWER

DATA = Path(__file__).parents[2] / "data" / "tegrastats"

every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: str(board.key))
FAMILIES = {
    **{"agx_orin": AGX_ORIN, "agx_xavier": AGX_XAVIER, "nano": NANO, "orin_nano": ORIN_NANO, "orin_nx": ORIN_NX},
    **{"thor_l4t38": THOR, "thor_l4t39": AGX_THOR, "tx1": TX1, "tx2": TX2, "xavier_nx": XAVIER_NX},
}
"""What the names of the recordings begin with; that of L4T 38 comes from a carrier without VIN."""


def sources() -> list[dict[str, str]]:
    with (DATA / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def sample_of(line: str) -> Sample:
    sample = parse_line(line)
    assert sample is not None, line
    return sample


def first_sample(name: str) -> Sample:
    return sample_of((DATA / name).read_text(encoding="utf-8").splitlines()[0])


def sample_like(board: Board) -> Sample:
    """Make a sample that looks as this board's do."""
    known = board.fingerprints[0]
    return Sample(
        ram_used_mb=100,
        ram_total_mb=known.ram_total_mb[1],
        cpu=(CoreLoad(0, 729),) * max(known.cores),
        temperatures_c=dict.fromkeys(known.zones, 40.0),
        rails_mw=dict.fromkeys(known.rails, 1000),
    )


@pytest.mark.parametrize(
    ("model", "board"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit\0", ORIN_NANO),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0", ORIN_NANO),
        ("NVIDIA Jetson AGX Orin Developer Kit\0", AGX_ORIN),
        ("NVIDIA Jetson AGX Orin Developer Kit\n", AGX_ORIN),
        ("NVIDIA Orin Nano Developer Kit\0", ORIN_NANO),
        ("NVIDIA Orin NX Developer Kit\0", ORIN_NX),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", ORIN_NX),
        ("NVIDIA Jetson AGX Thor Developer Kit\0", AGX_THOR),
        ("NVIDIA Jetson Thor Somebody's Carrier\0", THOR),
        ("Jetson-AGX\0", AGX_XAVIER),
        ("NVIDIA Jetson Xavier NX Developer Kit\0", XAVIER_NX),
        ("NVIDIA Jetson Nano Developer Kit\0", NANO),
        ("NVIDIA Jetson Nano 2GB Developer Kit\0", NANO_2GB),
        ("NVIDIA Jetson TX2 NX Developer Kit\0", TX2_NX),
        ("NVIDIA Jetson TX2 Developer Kit\0", TX2),
        ("quill\0", TX2),
        ("lightning\0", TX2),
        ("jetson_tx1\0", TX1),
        ("NVIDIA DRIVE AGX Orin\0", DRIVE_ORIN),
        ("Raspberry Pi 5 Model B Rev 1.0\0", None),
        ("", None),
    ],
)
def test_board_is_known_by_its_device_tree_model(model: str, board: Board | None) -> None:
    assert board_of_model(model) is board


@pytest.mark.parametrize(
    ("tree", "board"),
    [
        ("agx-orin-jp6.0", AGX_ORIN),
        ("agx-thor-jp7.0", AGX_THOR),
        ("nano-jp4.6", NANO),
        ("orin-nano-jp6.2", ORIN_NANO),
        ("orin-nx-jp6.1-container", ORIN_NX),
        ("xavier-nx-jp5.1", XAVIER_NX),
        ("raspberry-pi-5", None),
        ("laptop", None),
    ],
)
def test_board_is_known_by_the_part_numbers_of_its_tree(tree: str, board: Board | None) -> None:
    assert board_of_compatible(board_compatible(DATA.parent / "boards" / tree)) is board


@pytest.mark.parametrize(
    ("compatible", "board"),
    [
        ("nvidia,p3509-0000+p3636-0001", TX2_NX),
        ("nvidia,p3542-0000+p3448-0003", NANO_2GB),
        ("nvidia,p2972-0000", AGX_XAVIER),
        ("somebody,carrier-7 nvidia,p3767-0001 nvidia,tegra234", ORIN_NX),
        ("nvidia,p4071-0000+p3834-0008-nv", AGX_THOR),
        ("nvidia,p3971-0089+p3834-0008", AGX_THOR),
        ("somebody,carrier-7+p3834-0008 nvidia,tegra264", THOR),
        ("nvidia,p3740-0002+p3701-0008 nvidia,p3701-0008 nvidia,tegra234", IGX_ORIN),
        ("nvidia,p3701-0002 nvidia,tegra234", IGX_ORIN),
        ("nvidia,p3701-0008 nvidia,tegra234", None),
        ("nvidia,tegra234", None),
    ],
)
def test_the_longest_part_number_decides_and_a_chip_alone_does_not(compatible: str, board: Board | None) -> None:
    """IGX Orin has a module of AGX Orin Industrial (bindings/arm/tegra.yaml), or p3701-0002 (jetson_stats 7.2.0)."""
    assert board_of_compatible(compatible.split()) is board


def test_a_setting_goes_before_the_tree_and_the_tree_before_the_models_text() -> None:
    """Carriers of other makers keep the text of a developer kit: this one holds an Orin NX."""
    text, tree = "NVIDIA Orin Nano Developer Kit", ("nvidia,p3768-0000+p3767-0000",)
    assert board_of(Description(text, "", "", "", 1)) is ORIN_NANO
    assert board_of(Description(text, "", "", "", 1, compatible=tree)) is ORIN_NX
    assert board_of(Description(text, "", "", "", 1, compatible=tree, board_choice="xavier-nx")) is XAVIER_NX
    assert board_of(Description("aarch64", "", "", "", 1, compatible=("nvidia,tegra234",))) is None


@pytest.mark.parametrize(("tree", "board"), [("igx-orin", IGX_ORIN), ("igx-thor", IGX_THOR)])
def test_an_igx_shows_its_rails_and_no_total(tree: str, board: Board) -> None:
    """No source says which rails of an IGX add up, nor that they are those of the Jetson with the same module."""
    root = DATA.parent / "boards" / tree
    about = Description(board_model(root), "", "", "", 1, compatible=board_compatible(root))
    assert board_of(about) is board
    rails_mw = {"VDD_GPU_SOC": 2801, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4536}
    assert BoardTotal(about).add(Sample(rails_mw=rails_mw)) is None
    assert why_no_total(board, about.board_model, rails_mw) == (
        f"nobody has shown which rails of {board.title} add up to its power; its rails: "
        "VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"
    )
    named = replace(about, board_choice="agx-orin")
    assert BoardTotal(named).add(Sample(rails_mw=rails_mw)) == 7737


def test_agent_toml_can_name_every_board_of_the_table() -> None:
    assert get_args(BoardChoice) == ("auto", *BOARDS)


def test_board_of_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert board_of_key("thor") is THOR
    with pytest.raises(InputError, match="board 'pi': expected one of tx1, nano,"):
        board_of_key("pi")


@pytest.mark.parametrize("row", sources(), ids=lambda row: str(row["file"]))
def test_guess_finds_the_board_of_every_recording_with_rails(row: dict[str, str]) -> None:
    """Without rails nothing is guessed: there would be no total anyway."""
    lines = (DATA / row["file"]).read_text(encoding="utf-8").splitlines()
    sample = sample_of(lines[int(row["expect_line"]) - 1])
    board = guess_board(sample)
    if not sample.rails_mw:
        assert (board, row["total_rail"]) == (None, "none")
        return
    assert board is next(FAMILIES[start] for start in FAMILIES if row["file"].startswith(start))
    assert "+".join(board.total_rails) == row["total_rail"]
    assert total_mw(board, sample.rails_mw) == int(row["total_mw"])


@pytest.mark.parametrize(
    "row", [row for row in sources() if row["total_rail"] != "none"], ids=lambda row: str(row["file"])
)
def test_the_chips_give_the_total_of_tegrastats_on_the_same_rails(row: dict[str, str]) -> None:
    lines = (DATA / row["file"]).read_text(encoding="utf-8").splitlines()
    sample = sample_of(lines[int(row["expect_line"]) - 1])
    chips = parse_hwmon_line(sample_line(1, sample.rails_mw.items(), is_simulated=False))
    assert chips is not None
    by_lines, by_rails = BoardTotal(), BoardTotal()
    assert by_rails.add(chips) == by_lines.add(sample) == int(row["total_mw"])
    assert by_lines.board is not None
    assert by_rails.board is not None
    assert (by_rails.board.scope, by_rails.is_guessed) == (by_lines.board.scope, True)


def test_boards_that_share_rails_and_rule_are_guessed_together() -> None:
    chips = Sample(rails_mw={"VDD_IN": 4361, "VDD_CPU_GPU_CV": 400, "VDD_SOC": 1300})
    board = guess_board(chips)
    assert board is not None
    assert (board.key, board.title) == ("orin-nano", "Jetson Xavier NX or Orin NX or Orin Nano")
    assert guess_board(Sample(rails_mw={"VDD_IN": 4361, "VDD_SOC": 1300})) is None


@pytest.mark.parametrize(
    "board", [board for board in BOARDS.values() if board.fingerprints], ids=lambda board: str(board.key)
)
def test_no_board_looks_like_one_that_is_guessed_before_it(board: Board) -> None:
    assert guess_board(sample_like(board)) is board


def test_small_orins_are_told_apart_by_cores_memory_and_accelerators() -> None:
    """Xavier NX has their rails too."""
    rails = "VDD_IN 4304mW/4304mW VDD_CPU_GPU_CV 573mW/573mW VDD_SOC 1218mW/1218mW"
    six, eight = (",".join(["0%@729"] * cores) for cores in (6, 8))
    looks = {
        f"RAM 1224/15656MB CPU [{eight}] tj@45.8C {rails}": ORIN_NX,
        f"RAM 1224/7620MB CPU [{six}] cv0@41.1C tj@45.8C {rails}": ORIN_NX,
        f"RAM 1224/7620MB CPU [{six}] CV0@-256C tj@45.8C {rails}": ORIN_NANO,
        f"RAM 1224/3419MB CPU [{six}] tj@45.8C {rails}": ORIN_NANO,
        f"RAM 1224/7771MB CPU [{six}] AO@29C {rails}": XAVIER_NX,
        f"RAM 1224/7771MB CPU [{six}] {rails}": None,
        f"RAM 1224/7771MB CPU [{eight}] AO@29C {rails}": None,
    }
    assert [guess_board(sample_of(line)) for line in looks] == list(looks.values())


def test_nano_of_2_gb_is_known_by_its_memory_and_has_no_total() -> None:
    board = guess_board(sample_of("RAM 700/1979MB CPU [5%@102,0%@102,0%@102,0%@102] GR3D_FREQ 0% CPU@30C"))
    assert board is NANO_2GB
    assert total_mw(board, {}) is None
    assert why_no_total(board, "", []) == "Jetson Nano 2GB has no power monitor"


def test_thor_with_the_rail_of_its_board_is_measured_by_it() -> None:
    """VIN is more than the module: the two scopes must not meet under one name."""
    rails = "VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 5535mW/5535mW VIN_SYS_5V0 5040mW/5040mW"
    head = f"RAM 17842/125772MB CPU [{','.join(['0%@972'] * 14)}] tj@31.2C {rails}"
    kit, other = sample_of(f"{head} VIN 16802mW/16802mW"), sample_of(head)
    assert guess_board(kit) is AGX_THOR
    assert guess_board(other) is THOR
    assert (total_mw(AGX_THOR, kit.rails_mw), total_mw(THOR, other.rails_mw)) == (16802, 0 + 5535 + 5040)
    assert total_mw(AGX_THOR, other.rails_mw) is None
    assert AGX_THOR.scope != THOR.scope


def test_thor_kit_without_the_rail_of_its_board_is_measured_by_its_module_and_says_so() -> None:
    """Carriers of other makers keep the tree of the developer kit, and lack its INA238."""
    module_mw = {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 4100, "VIN_SYS_5V0": 4200}
    module, kit = Sample(rails_mw=module_mw), Sample(rails_mw={**module_mw, "VIN": 15000})
    about = Description("NVIDIA Jetson AGX Thor Developer Kit", "", "", "", 1)
    total = BoardTotal(about)
    assert [total.add(sample) for sample in (Sample(), module, kit)] == [None, 8300, 8300]
    assert total.board is THOR
    assert total.note == (
        "the samples of Jetson AGX Thor Developer Kit lack VIN, so the total is the sum of 3 module rails"
    )
    whole = BoardTotal(about)
    assert [whole.add(sample) for sample in (kit, module)] == [15000, None]
    assert (whole.board, whole.note) == (AGX_THOR, "")


def test_total_of_agx_orin_leaves_out_the_rail_inside_another() -> None:
    rails_mw = first_sample("agx_orin_l4t35_01.txt").rails_mw
    assert rails_mw["VDDQ_VDD2_1V8AO"] == 301
    assert total_mw(AGX_ORIN, rails_mw) == 2399 + 400 + 4032


def test_total_of_orin_nano_is_its_input_alone() -> None:
    assert total_mw(ORIN_NANO, first_sample("orin_nano_l4t36_05.txt").rails_mw) == 4824


@every_board
def test_total_without_one_of_its_rails_is_absent(board: Board) -> None:
    """A partial sum looks like a frugal board."""
    rails = {*board.total_rails, *board.nested_rails}
    for missing in board.total_rails:
        assert total_mw(board, {rail: 1000 for rail in rails if rail != missing}) is None
    whole = total_mw(board, dict.fromkeys(rails, 1000))
    assert whole == (1000 * len(board.total_rails) or None)


@every_board
def test_every_row_agrees_with_itself(board: Board) -> None:
    assert not board.nested_rails & set(board.total_rails)
    assert board.lsb_mw.keys() <= board.nested_rails | set(board.total_rails)
    assert len(board.total_lsb_mw) == len(board.total_rails)
    assert bool(board.scope) == bool(board.total_rails)
    assert all(set(board.total_rails) <= known.rails for known in board.fingerprints)
    assert BOARDS[board.key] is board


@pytest.mark.parametrize("key", POWER)
def test_figures_for_simulation_are_of_the_rails_of_the_board(key: str) -> None:
    board, power = BOARDS[key], POWER[key]
    assert list(power.idle_mw) == list(power.load_mw)
    assert set(power.idle_mw) == set(board.lsb_mw) == {*board.total_rails, *board.nested_rails}
    assert all(power.idle_mw[rail] < power.load_mw[rail] for rail in power.idle_mw)


def test_unknown_board_is_named_with_its_rails() -> None:
    assert why_no_total(None, "Pi", ["VDD_A", "VDD_B"]) == (
        "board 'Pi' is not in the table, so no total is known; its rails: VDD_A, VDD_B: if it is one of the "
        "table, name it by board in agent.toml, or by --board"
    )
    assert why_no_total(ORIN_NANO, "", ["VDD_SOC"]) == (
        "expected the rails VDD_IN of Jetson Orin Nano, found these: VDD_SOC"
    )
