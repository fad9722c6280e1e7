"""Which structure the name of an ROI, a segment or a mask series means: the liver, its tumours, or neither.

Names are read word by word. One with a word that is not known here is not understood, whatever else it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hepar.ingest.sources.organ_words import LIVER, ORGANS, OTHERS, TUMOURS

TUMOUR = rf"{TUMOURS}|metastasen?|gtvs?|crlms?"
NEUTRAL = r"whole|masks?|segmentations?|seg|labels?|rois?|manual|organ|tissue|structure"
GLUED = re.compile(rf"{LIVER}|{TUMOUR}|masks?|segmentation|seg|label")  # words that names join, as livertumor
PLACE = r"left|right|[lr]|lobe|segment|s|i{1,3}|iv|vi{0,3}|[a-d]"
OF_TUMOUR = r"primary|secondary|malignant|metastatic|mass|in|of|the"  # words that say no more than a tumour's does
NUMBER = r"\d+|[-#]"
WORDS_OF_LIVER = re.compile(rf"{LIVER}|{NEUTRAL}|{NUMBER}")
WORDS_OF_PART = re.compile(rf"{WORDS_OF_LIVER.pattern}|hepatic|{PLACE}")
WORDS_OF_TUMOUR = re.compile(rf"{WORDS_OF_PART.pattern}|hepatocellular|intrahepatic|{TUMOUR}|{OF_TUMOUR}")
NEGATION = re.compile(r"minus|without|no|non|not")
MARGIN = re.compile(r"[pci]tvs?|prvs?|margins?|rings?|shells?")
OTHER = re.compile(rf"\b(?:{ORGANS}|{OTHERS}|cysts?)\b")
SUBTRACTED = re.compile(rf"\b({LIVER}) (\d+ )?- ({TUMOUR})\b")
MENTIONS_LIVER = re.compile(r"(?<!o)liver|hepa[rt]|leber|foie|hcc")
MENTIONS_TUMOUR = re.compile(
    r"tumou?r|tumeur|lesion|metasta|cancer|carcinom|neoplas|hcc|gtv|crlm|malign|sarcom|blastom"
    r"|\b(mets?|mass(es)?|nodules?)\b"
)


@dataclass(frozen=True)
class Meaning:
    """The structure that a name means, if any; of a name that is not understood, those that it may concern."""

    structure: str = ""
    unclear: tuple[str, ...] = ()


def meaning(texts: Iterable[str]) -> Meaning:
    """What the texts that name one ROI, segment or series mean together.

    A name of another organ, a margin or what is not tumour means nothing. Without a word of liver or tumour it concerns
    neither.
    """
    words = _words(" ".join(texts))
    text = " ".join(words)
    of_liver, of_tumour = bool(MENTIONS_LIVER.search(text)), bool(MENTIONS_TUMOUR.search(text))
    if not (of_liver or of_tumour) or any(map(MARGIN.fullmatch, words)):
        return Meaning()
    if OTHER.search(text) and not (of_liver and of_tumour):
        return Meaning()
    plain = [word for word in words if not NEGATION.fullmatch(word)]
    if len(plain) < len(words) and all(map(WORDS_OF_TUMOUR.fullmatch, plain)):
        return Meaning()
    if not SUBTRACTED.search(text):
        if any(re.fullmatch(TUMOUR, word) for word in words) and all(map(WORDS_OF_TUMOUR.fullmatch, words)):
            return Meaning("tumour")
        if any(re.fullmatch(LIVER, word) for word in words) and all(map(WORDS_OF_LIVER.fullmatch, words)):
            return Meaning("liver")
        if all(map(WORDS_OF_PART.fullmatch, words)):
            return Meaning(unclear=("liver",))
    return Meaning(unclear=("liver", "tumour") if of_liver else ("tumour",))


def _words(name: str) -> list[str]:
    """Words in lower case, numbers and signs: `LiverTumor_2` becomes liver, tumor, 2."""
    spaced = re.sub(r"[\s_.,:;()\[\]]+", " ", name.lower())
    found = re.findall(r"[^\W\d]+|\d+|[^\w\s]", spaced)
    words = [word for part in found for word in (_unglued(part) if len(part) > 1 else [part])]
    joined = re.sub(r"\bseg(?= (\d|[iv]+\b))", "segment", " ".join(words))
    return re.sub(r"\bno (?=\d)", "", joined).split()


def _unglued(word: str) -> list[str]:
    return GLUED.findall(word) if re.fullmatch(rf"({GLUED.pattern})+", word) else [word]
