"""What a case keeps of a DICOM header: numbers, and words of known lists. Any other text may name a patient.

The words are the defined terms of DICOM PS3.3 (C.7.6.1.1.2, C.8.2.1, C.8.3.1, C.8.13, C.8.15) and those that scanners
of Canon, GE, Philips and Siemens add to them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import pydicom
from pydicom.multival import MultiValue

# a maker is kept by the name that its scanners write most
MAKERS = (
    ("SIEMENS", r"siemens"),
    ("GE MEDICAL SYSTEMS", r"\bge\b|general electric"),
    ("Philips", r"philips"),
    ("TOSHIBA", r"toshiba"),
    ("CANON_MEC", r"canon"),
    ("Hitachi", r"hitachi"),
    ("FUJIFILM", r"fuji"),
    ("UIH", r"\buih\b|united imaging"),
    ("NMS", r"neusoft|\bnms\b"),
    ("SHIMADZU", r"shimadzu"),
    ("Esaote", r"esaote"),
    ("Hyperfine", r"hyperfine"),
)
SCANNING_SEQUENCE = frozenset({"SE", "IR", "GR", "EP", "RM"})
SEQUENCE_VARIANT = frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"})
IMAGE_TYPE_WORDS = """
    ORIGINAL DERIVED MIXED PRIMARY SECONDARY AXIAL LOCALIZER REFORMATTED MPR CPR CURVED VOLUME HELIX HELICAL SPIRAL
    DYNAMIC AVERAGE AVERAGED MEAN MAX MIN MIP MINIP MNIP SUM ADDITION SUBTRACTION SUB MULTIPLICATION DIVISION MASKED
    MEDIAN STD_DEVIATION FILTERED RESAMPLED QUANTITY PROJECTION MAXIMUM MINIMUM NONE OTHER PRESENTATION ENERGY_PROP_WT
    MONOENERGETIC MONO VMI DE_MIXED MATERIAL IODINE WATER_IODINE VNC SPECTRAL GSI LOWDOSE ADDED
    CT_SOM5 CT_SOM7 CT_SOM8 CT_SOMX SPI SEQ TOP PROT
    M P R I M_SE M_FFE M_IR M_PCA P_SE P_FFE P_IR R_SE R_FFE R_IR I_SE I_FFE I_IR SE FFE IR PCA TSE TFE GR EPI
    MAGNITUDE PHASE REAL IMAGINARY COMPLEX ND NORM NORMALIZED DIS2D DIS3D DIS FM FIL FS MFSPLIT SH SH1 SH2 MOSAIC CSA
    MAP ADC ADC_UNSPECIFIED TRACEW TRACE_UNFILTERED TRACE DIFFUSION DWI EADC FA ISODWI CALC_BVALUE COMP_DIFF COMBINED
    WATER FAT W F IP OP OUT IN_PHASE OUT_PHASE OPP_PHASE IN OPP INPHASE OUTPHASE DIXON W_ONLY F_ONLY FAT_FRACTION
    T1 T2 T2_STAR R2 R2_STAR PROTON_DENSITY PROP PERFUSION ASL FLUID_ATTENUATED STIR TOF TI TIR RETRO ENHANCED
    CONTRAST UNENHANCED VELOCITY FLOW_ENCODED T1_MAP T2_MAP PARALLEL SENSE GRAPPA COMP_AD COMP_SP DRB DRG DRS PFP PFL
    SCIC ABDOMEN LIVER HEAD NECK CHEST PELVIS
"""
KNOWN_WORDS = {
    "ScanningSequence": SCANNING_SEQUENCE,
    "SequenceVariant": SEQUENCE_VARIANT,
    "ImageType": frozenset(IMAGE_TYPE_WORDS.split()),
}
NUMBERS = ("MagneticFieldStrength", "KVP", "SliceThickness", "RepetitionTime", "EchoTime", "FlipAngle")
NUMBER = re.compile(r"[+-]?\d{1,5}(\.\d{0,17})?([eE][+-]?\d{1,2})?")  # longer ones may be the number of a patient
# words that name a phase or sequence; the description itself may hold anything and is dropped
VOCABULARY = (
    ("hepatobiliary", r"\bhepato ?biliary|\bhbp\b|\bprimovist|\beovist"),
    ("portal-venous", r"\bportal|\bporto ?venous|\bvenous|\bpv\b|\bvp\b"),
    ("arterial", r"\barterial|\bart\b"),
    ("delayed", r"\bdelay|\blate\b|\bequilib"),
    ("non-contrast", r"\bnon[ -]?contrast|\bnativ|\bunenhanced|\bpre\b|\bwithout contrast"),
    ("DWI", r"\bdwi\b|\bdiffusion|\badc\b"),
    ("T1-in-phase", r"\bin[ -]?phase"),
    ("T1-opposed-phase", r"\b(?:opp(?:osed)?|out)[ -]?(?:of[ -]?)?phase"),
    ("T2-SPIR", r"(?:\b|\bt2w?)spir\b"),
    ("T2", r"\bt2"),
    ("T1", r"\bt1"),
)
FACTS = (
    "Manufacturer",
    "MagneticFieldStrength",
    "KVP",
    "SliceThickness",
    "ScanningSequence",
    "SequenceVariant",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "ImageType",
)


def known_facts(tags: pydicom.Dataset) -> dict[str, str]:
    """The tags of `FACTS` that hold a number or known words; unknown words are left out, one by one."""
    kept = {name: _known(name, tags.get(name)) for name in FACTS}
    return {name: text for name, text in kept.items() if text}


def named_sequence(description: str) -> str:
    """The phase or sequence of `VOCABULARY` that a description names, the first of several; empty if it names none."""
    text = description.replace("_", " ")
    return next((name for name, words in VOCABULARY if re.search(words, text, re.IGNORECASE)), "")


def _known(name: str, value: Any) -> str:
    """What is kept of one tag as text, several words as a list; empty if nothing is."""
    if value is None:
        return ""
    if name == "Manufacturer":
        return next((maker for maker, words in MAKERS if re.search(words, str(value), re.IGNORECASE)), "")
    if name in NUMBERS:
        return str(value) if NUMBER.fullmatch(str(value)) else ""
    several = isinstance(value, MultiValue | list | tuple)
    kept = [text for text in map(str, value if several else [value]) if _is_known(text, KNOWN_WORDS[name])]
    return str(kept) if several and kept else "".join(kept)


def _is_known(text: str, words: Collection[str]) -> bool:
    """Whether a text has words, all of them known: scanners write `CT_SOM5 SPI` as one value."""
    parts = text.upper().split()
    return bool(parts) and all(part in words for part in parts)
