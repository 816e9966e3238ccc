"""Every known kind of Jetson: which rails add up to its power, and the resolution and lag of its sensor.

No Jetson says which rail is its total. On Orin Nano ``VDD_IN`` contains the other rails; AGX Orin has no such rail,
and there ``VDDQ_VDD2_1V8AO`` is fed from ``VIN_SYS_5V0``, so adding all rails would count it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class Fingerprint:
    """What the lines of a board show, to guess the board from."""

    rails: frozenset[str]
    """The lines have all of these; empty: they have no rail at all."""
    cores: frozenset[int]
    """Possible numbers of listed cores, those that are off counted."""
    ram_total_mb: tuple[int, int]
    """Smallest and largest total memory of its variants."""
    zones: frozenset[str] = frozenset()
    """The lines have one of these, in lower case; empty: any zones."""
    lacks: frozenset[str] = frozenset()
    """The lines have none of these rails."""


@dataclass(frozen=True)
class Board:
    """One kind of Jetson; ``BOARDS`` lists them."""

    key: str
    """Short name for options and files."""
    title: str
    model_prefixes: tuple[str, ...]
    """How ``/proc/device-tree/model`` may begin; the longest prefix of all boards wins."""
    modules: tuple[str, ...]
    """Part numbers that the device tree's ``compatible`` may contain, some with their carrier's; the longest one of all
    boards wins. Other makers' carriers mostly keep the module's number, and the model text of a board of NVIDIA."""
    total_rails: tuple[str, ...]
    """The rails to add for the total, each exactly once; empty: the board has no power monitor, or nobody has shown
    which of its rails add up."""
    scope: str
    """What that total covers. Joules of different scopes are not comparable."""
    lsb_mw: Mapping[str, int]
    """Per rail: one LSB of the sensor's converter; the rails of the total, and those whose power it contains."""
    fingerprints: tuple[Fingerprint, ...] = ()
    """Lines that fit one of them may come from this board; without any, it is never guessed."""
    # Fitted to clean load steps of one 100 ms log of one Orin Nano (L4T 36.4.7): 0.39 to 0.41 s upwards, 0.45 to
    # 0.52 s downwards. Other boards are unmeasured and take the same value.
    tau_s: float = 0.43
    """Time constant of the sensor's averaging: after a step of power the reading lags as a first-order filter does."""
    fallback: Board | None = None
    """Whose rule holds where samples lack a rail of this one."""
    is_total_unknown: bool = False
    """Whether it has rails, of which nobody has shown what they cover."""

    @property
    def total_lsb_mw(self) -> tuple[int, ...]:
        """The LSB of each rail of the total, in milliwatts."""
        return tuple(self.lsb_mw[rail] for rail in self.total_rails)

    @property
    def nested_rails(self) -> frozenset[str]:
        """Rails whose power is in the total already."""
        return frozenset(self.lsb_mw).difference(self.total_rails)


def _lsb(**lsb_mw: int) -> Mapping[str, int]:
    return MappingProxyType(lsb_mw)


# An LSB is the distance between neighbouring readings in recorded lines, where nothing else is said. Model strings
# and part numbers are those of the device trees of L4T and of mainline Linux (bindings/arm/tegra.yaml), the latter also
# from jetson_stats; Adafruit-PlatformDetect lists the early ones. "energymon" is its page
# jetson/JetsonPowerRails.md, which follows NVIDIA's developer guide and the device trees of L4T 32.6.1.

_MODULE_INPUT = "module input (VDD_IN)"
_VDD_IN = ("VDD_IN",)
_CPU_GPU_CV_SOC = frozenset({"VDD_CPU_GPU_CV", "VDD_SOC"})

TX1 = Board(
    key="tx1",
    title="Jetson TX1",
    model_prefixes=("NVIDIA Jetson TX1", "jetson_tx1"),
    modules=("p2180", "p2371-2180"),
    total_rails=_VDD_IN,  # energymon
    scope=_MODULE_INPUT,
    lsb_mw=_lsb(VDD_IN=19, VDD_CPU=19, VDD_GPU=19),
    fingerprints=(Fingerprint(frozenset({"VDD_IN", "VDD_CPU", "VDD_GPU"}), frozenset({4}), (3500, 4096)),),
)

NANO = Board(
    key="nano",
    title="Jetson Nano",
    model_prefixes=("NVIDIA Jetson Nano",),
    modules=("p3448-0000", "p3448-0002", "p3450"),
    total_rails=("POM_5V_IN",),  # energymon
    scope="module input (POM_5V_IN)",
    lsb_mw=_lsb(POM_5V_IN=40, POM_5V_GPU=40, POM_5V_CPU=40),
    fingerprints=(Fingerprint(frozenset({"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}), frozenset({4}), (3500, 4096)),),
)

NANO_2GB = Board(
    key="nano-2gb",
    title="Jetson Nano 2GB",
    model_prefixes=("NVIDIA Jetson Nano 2GB",),
    modules=("p3448-0003",),
    total_rails=(),  # energymon: it has no INA3221
    scope="",
    lsb_mw=_lsb(),
    fingerprints=(Fingerprint(frozenset(), frozenset({4}), (1700, 2048)),),  # no other Jetson has 2 GB
)

_TX2_PARTS = frozenset({"VDD_CPU", "VDD_GPU", "VDD_SOC", "VDD_DDR"})  # L4T 28
_TX2_SYS_PARTS = frozenset({"VDD_SYS_CPU", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_DDR"})  # L4T 32
_TX2_WIFI = frozenset({"VDD_WIFI", "VDD_4V0_WIFI"})  # not on TX2i

TX2 = Board(
    key="tx2",
    title="Jetson TX2",
    # TX2, TX2i and TX2 4GB have the same monitors; up to L4T 32 the device tree has code names.
    model_prefixes=("NVIDIA Jetson TX2", "quill", "lightning"),
    modules=("p3310", "p3489", "p2771"),
    total_rails=_VDD_IN,  # energymon, NVIDIA developer forum topic 201037
    scope=_MODULE_INPUT,
    lsb_mw=MappingProxyType(
        {rail: 19 if "DDR" in rail else 76 for rail in sorted(_TX2_PARTS | _TX2_SYS_PARTS)}
        | {"VDD_IN": 38}
        | dict.fromkeys(sorted(_TX2_WIFI), 19)
    ),
    fingerprints=tuple(
        Fingerprint(parts | {"VDD_IN"}, frozenset({6}), (3500, 8192)) for parts in (_TX2_PARTS, _TX2_SYS_PARTS)
    ),
)

TX2_NX = Board(
    key="tx2-nx",
    title="Jetson TX2 NX",
    model_prefixes=("NVIDIA Jetson TX2 NX",),
    modules=("p3636",),
    total_rails=_VDD_IN,  # energymon
    scope=_MODULE_INPUT,
    lsb_mw=_lsb(VDD_IN=40, VDD_CPU_GPU=40, VDD_SOC=40),  # no recording: taken over from Xavier NX
    fingerprints=(Fingerprint(frozenset({"VDD_IN", "VDD_CPU_GPU", "VDD_SOC"}), frozenset({6}), (3500, 4096)),),
)

XAVIER_NX = Board(
    key="xavier-nx",
    title="Jetson Xavier NX",
    model_prefixes=("NVIDIA Jetson Xavier NX",),
    modules=("p3668",),
    total_rails=_VDD_IN,  # energymon
    scope=_MODULE_INPUT,
    lsb_mw=_lsb(VDD_IN=40, VDD_CPU_GPU_CV=40, VDD_SOC=40),
    # The rails of the small Orins; their zone tj is what it lacks.
    fingerprints=(
        Fingerprint(_CPU_GPU_CV_SOC | {"VDD_IN"}, frozenset({6}), (6500, 16384), zones=frozenset({"ao", "aux"})),
    ),
)

AGX_XAVIER = Board(
    key="agx-xavier",
    title="Jetson AGX Xavier",
    model_prefixes=("NVIDIA Jetson AGX Xavier", "Jetson-AGX"),
    modules=("p2888", "p2972"),
    # energymon, from the product design guide: no rail contains another.
    total_rails=("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    scope="sum of 6 module rails",
    # Of an early image of the 16 GB module the recorded readings are 72 mW apart.
    lsb_mw=_lsb(GPU=155, CPU=155, SOC=155, CV=155, VDDRQ=155, SYS5V=155),
    fingerprints=(
        Fingerprint(frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}), frozenset({8}), (7000, 65536)),
    ),
)

ORIN_NANO = replace(
    XAVIER_NX,  # the same rails
    key="orin-nano",
    title="Jetson Orin Nano",
    # Developer kits say "... Developer Kit" or "... Engineering Reference Developer Kit Super".
    model_prefixes=("NVIDIA Jetson Orin Nano", "NVIDIA Orin Nano", "Jetson Orin Nano"),  # "NVIDIA Orin": L4T 35
    modules=("p3767-0003", "p3767-0004", "p3767-0005"),
    # Jetson Linux developer guide R36, "Power and Performance": VDD_IN is the input of the module.
    total_rails=_VDD_IN,
    fingerprints=(Fingerprint(_CPU_GPU_CV_SOC | {"VDD_IN"}, frozenset({6}), (3000, 8192), zones=frozenset({"tj"})),),
)

_CV_ZONES = frozenset({"cv0", "cv1", "cv2"})

ORIN_NX = replace(
    ORIN_NANO,  # the modules share their carriers
    key="orin-nx",
    title="Jetson Orin NX",
    model_prefixes=("NVIDIA Jetson Orin NX", "NVIDIA Orin NX", "Jetson Orin NX"),
    modules=("p3767-0000", "p3767-0001"),
    # It has the accelerators that Orin Nano lacks, and so their zones; with 16 GB it has eight cores.
    fingerprints=(
        Fingerprint(_CPU_GPU_CV_SOC | {"VDD_IN"}, frozenset({6, 8}), (6500, 16384), zones=_CV_ZONES),
        Fingerprint(_CPU_GPU_CV_SOC | {"VDD_IN"}, frozenset({8}), (12000, 16384), zones=frozenset({"tj"})),
    ),
)

AGX_ORIN = Board(
    key="agx-orin",
    title="Jetson AGX Orin",
    model_prefixes=("NVIDIA Jetson AGX Orin", "NVIDIA AGX Orin", "Jetson AGX Orin"),
    # p3701-0008 alone may be an IGX Orin, whose carrier is p3740.
    modules=("p3701-0000", "p3701-0004", "p3701-0005", "p3737-0000+p3701-0008"),
    # NVIDIA developer forum topic 223111: no parent rail, VDDQ_VDD2_1V8AO is a child of VIN_SYS_5V0. In 4111 recorded
    # samples VIN_SYS_5V0 rises by 1.56 mW per mW of it.
    total_rails=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    scope="sum of 3 module rails",
    lsb_mw=_lsb(VDD_GPU_SOC=400, VDD_CPU_CV=400, VIN_SYS_5V0=101, VDDQ_VDD2_1V8AO=100),
    fingerprints=(
        Fingerprint(frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}), frozenset({8, 12}), (28000, 65536)),
    ),
)

_THOR_PARTS = frozenset({"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"})
_THOR_CORES = frozenset({12, 14})  # T4000, T5000
_THOR_RAM_MB = (60000, 131072)

THOR = Board(
    key="thor",
    title="Jetson Thor on another carrier",
    model_prefixes=("NVIDIA Jetson AGX Thor", "NVIDIA Jetson Thor", "NVIDIA Jetson T4000", "NVIDIA Jetson T5000"),
    modules=("p3834",),
    # Lines of two releases without VIN, recorded on such carriers.
    total_rails=("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    scope="sum of 3 module rails",
    lsb_mw=_lsb(VDD_GPU=395, VDD_CPU_SOC_MSS=395, VIN_SYS_5V0=395),
    fingerprints=(Fingerprint(_THOR_PARTS, _THOR_CORES, _THOR_RAM_MB, lacks=frozenset({"VIN"})),),
)

AGX_THOR = Board(
    key="agx-thor",
    title="Jetson AGX Thor Developer Kit",
    model_prefixes=("NVIDIA Jetson AGX Thor Developer Kit",),
    modules=("p4071-0000+p3834", "p3971"),  # p3971: how mainline Linux names the kit
    # jetson-stats pull request 900, NVIDIA developer forum topic 366461: an INA238 on the carrier measures the input of
    # the whole board. At rest it shows 6.2 to 6.4 W more than the three rails of the module together.
    total_rails=("VIN",),
    scope="whole board (VIN)",
    # Readings are 380 to 395 mW apart. The LSB of the INA238 is not known, and taken to be no finer.
    lsb_mw=_lsb(VIN=395, VDD_GPU=395, VDD_CPU_SOC_MSS=395, VIN_SYS_5V0=395),
    fingerprints=(Fingerprint(_THOR_PARTS | {"VIN"}, _THOR_CORES, _THOR_RAM_MB),),
    fallback=THOR,  # another carrier mostly keeps the tree of the developer kit, and lacks its INA238
)

IGX_ORIN = Board(
    key="igx-orin",
    title="IGX Orin",
    # Mainline Linux, tegra234-p3740-0002+p3701-0008.dts: "NVIDIA IGX Orin Development Kit"; its pages: "Developer Kit".
    model_prefixes=("NVIDIA IGX Orin",),
    modules=("p3701-0002", "p3740-0002+p3701-0008"),  # jetson_stats has the former, mainline Linux the latter
    total_rails=(),
    scope="",
    lsb_mw=_lsb(),
    is_total_unknown=True,
)

IGX_THOR = Board(
    key="igx-thor",
    title="IGX Thor",
    model_prefixes=("NVIDIA IGX Thor",),  # as docs.nvidia.com/igx calls it: no file shows its tree
    modules=(),
    total_rails=(),
    scope="",
    lsb_mw=_lsb(),
    is_total_unknown=True,
)

DRIVE_ORIN = Board(
    key="drive-orin",
    title="DRIVE AGX Orin",
    model_prefixes=("NVIDIA DRIVE AGX Orin", "NVIDIA DRIVE Orin"),
    modules=(),
    total_rails=(),  # its tegrastats prints no rail
    scope="",
    lsb_mw=_lsb(),
)

BOARDS: Mapping[str, Board] = {
    board.key: board
    for board in (
        *(TX1, NANO, NANO_2GB, TX2, TX2_NX, XAVIER_NX, AGX_XAVIER),
        *(ORIN_NX, ORIN_NANO, AGX_ORIN, AGX_THOR, THOR, IGX_ORIN, IGX_THOR, DRIVE_ORIN),
    )
}
"""All known boards by key, in the order in which they are guessed: a more specific fingerprint before a plainer one."""
