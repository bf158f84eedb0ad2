"""Language codes, and the English names that prompts use."""

import difflib
import re
from dataclasses import dataclass

from kslottery_fast.base.errors import InputError

_NAMES = """
af Afrikaans | am Amharic | ar Arabic | ar_dz Algerian Arabic | ast Asturian | az Azerbaijani | be Belarusian
bg Bulgarian | bn Bengali | br Breton | bs Bosnian | ca Catalan | ckb Central Kurdish | cs Czech | cy Welsh
da Danish | de German | dsb Lower Sorbian | dv Divehi | el Greek | en English | eo Esperanto | es Spanish
es_419 Latin American Spanish | es_ar Argentinian Spanish | es_co Colombian Spanish | es_mx Mexican Spanish
es_ve Venezuelan Spanish | et Estonian | eu Basque | fa Persian | fi Finnish | fr French | fr_ca Canadian French
fy Frisian | ga Irish | gd Scottish Gaelic | gl Galician | gu Gujarati | he Hebrew | hi Hindi | hr Croatian
hsb Upper Sorbian | ht Haitian Creole | hu Hungarian | hy Armenian | ia Interlingua | id Indonesian | ig Igbo | io Ido
is Icelandic | it Italian | ja Japanese | ka Georgian | kab Kabyle | kk Kazakh | km Khmer | kn Kannada | ko Korean
ky Kyrgyz | lb Luxembourgish | lt Lithuanian | lv Latvian | mi Maori | mk Macedonian | ml Malayalam | mn Mongolian
mr Marathi | ms Malay | mt Maltese | my Burmese | nb Norwegian Bokmål | ne Nepali | nl Dutch | nn Norwegian Nynorsk
os Ossetian | pa Punjabi | pl Polish | pt Portuguese | pt_br Brazilian Portuguese | ro Romanian | ru Russian
si Sinhala | sk Slovak | sl Slovenian | sq Albanian | sr Serbian | sr_latn Serbian (Latin) | sv Swedish | sw Swahili
ta Tamil | te Telugu | tet Tetum | tg Tajik | th Thai | tk Turkmen | tr Turkish | tt Tatar | udm Udmurt | ug Uyghur
uk Ukrainian | ur Urdu | uz Uzbek | vi Vietnamese | zh_hans Simplified Chinese | zh_hant Traditional Chinese
"""
LANGUAGES: dict[str, str] = dict(entry.split(" ", 1) for entry in re.split(r" \| |\n", _NAMES.strip()))
"""The languages of the default catalogues: English names by code, in lower case with underscores."""

# Codes with a region that makes no difference. es_ES is Spanish, but es_MX is another catalogue.
_ALIASES = {
    "ca_es": "ca", "cs_cz": "cs", "da_dk": "da", "el_gr": "el", "en_us": "en", "fa_ir": "fa", "he_il": "he",
    "hi_in": "hi", "hy_am": "hy", "ja_jp": "ja", "ka_ge": "ka", "ko_kr": "ko", "nb_no": "nb", "sl_si": "sl",
    "sq_al": "sq", "sr_rs": "sr", "sv_se": "sv", "uk_ua": "uk", "vi_vn": "vi",
    "zh_cn": "zh_hans", "zh_hans_cn": "zh_hans", "zh_tw": "zh_hant", "zh_hant_tw": "zh_hant",
}  # fmt: skip


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes
    ----------
    code : str
        Finds its catalogues.
    name : str
        Its English name, for prompts.
    """

    code: str
    name: str


def canonical_code(code: str) -> str:
    """Write a locale code in lower case, with an underscore, and without a region that makes no difference.

    Examples
    --------
    >>> canonical_code("pt-BR"), canonical_code("es_ES"), canonical_code("zh-CN"), canonical_code("fr-FR")
    ('pt_br', 'es', 'zh_hans', 'fr')
    """
    spelled = code.strip().lower().replace("-", "_")
    if re.fullmatch(r"([a-z]{2})_\1", spelled):
        return spelled[:2]
    return _ALIASES.get(spelled, spelled)


def find_language(text: str) -> Language:
    """Find a language by its code or its English name.

    Parameters
    ----------
    text : str
        A code, an English name, or ``CODE=NAME`` for a language that is not in :data:`LANGUAGES`.

    Raises
    ------
    InputError
        An unknown language. The message suggests the nearest ones.
    TypeError
        Not a string.

    Examples
    --------
    >>> find_language("ca").name, find_language("Catalan").code, find_language("nah=Nahuatl").name
    ('Catalan', 'ca', 'Nahuatl')
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r}; expected a code such as 'es', or a name such as 'Spanish'")
    code, separator, name = text.partition("=")
    code = canonical_code(code)
    if separator:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", code) or not name.strip():
            raise InputError(f"language {text!r}: write CODE=NAME, as in nah=Nahuatl")
        return Language(code, name.strip())
    wanted = " ".join(text.split()).casefold()
    codes = {name.casefold(): code for code, name in LANGUAGES.items()}
    found = code if code in LANGUAGES else codes.get(wanted)
    if found:
        return Language(found, LANGUAGES[found])
    near = [codes[name] for name in difflib.get_close_matches(wanted, codes, n=3)]
    near += difflib.get_close_matches(code, LANGUAGES, n=3)
    if len(code) == 2:  # too short for the matching above: the nearest codes in the alphabet
        plain = [known for known in LANGUAGES if known.partition("_")[0] not in LANGUAGES or "_" not in known]
        near += sorted(plain, key=lambda known: [abs(ord(a) - ord(b)) for a, b in zip(known, code, strict=False)])
    *guesses, last = [f"{guess} ({LANGUAGES[guess]})" for guess in list(dict.fromkeys(near))[:6]] or [""]
    hint = (
        f"did you mean {' or '.join([', '.join(guesses), last] if guesses else [last])}? "
        if near
        else "give a code such as es or a name such as Spanish. "
    )
    raise InputError(f"unknown language {text!r}; {hint}Write CODE=NAME for another language, as in nah=Nahuatl")
