"""Tokenize captions as the Java PTB tokenizer does that pycocoevalcap calls: lower-cased, its punctuation removed.

The lexer reads all captions of a call as the lines of one file: at each position the rule with the longest match wins,
look-ahead counts towards the length, and of equally long matches the earlier rule wins.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from seed_jax.evaluation.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS, character_class

# The tokens that pycocoevalcap removes. The bracket names stand here in capitals and the tokens are lower-case: that is
# how it is written there, and why `-lrb-` stays in captions.
_REMOVED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Line ends to the Java lexer: in a caption they would shift every later caption of the file by one line.
_LINE_SEPARATORS = re.compile("[\r\x0b\x0c\u2028\u2029]")

_A = f"[{character_class(LETTERS)}{character_class(DIGITS)}]"  # of words with hyphens or leading digits
# The entities of accented letters (`&eacute;`) are read as letters.
_ENTITY_LETTER = r"&(?i:[aeiou](?:acute|grave|uml));"
_LETTER = f"(?:[{character_class(LETTERS)}{character_class(MARKS)}\\u00AD]|{_ENTITY_LETTER})"
_WORD_CHARACTER = (
    f"(?:[{character_class(LETTERS)}{character_class(MARKS)}{character_class(DIGITS)}\\u00AD]|{_ENTITY_LETTER})"
)
_WORD = f"{_LETTER}{_WORD_CHARACTER}*(?:[.!?]{_LETTER}{_WORD_CHARACTER}*)*"
_APOSTROPHE = r"(?:['\u0092\u2019]|&(?i:apos);)"
_APOSTROPHE_OR_BACKQUOTE = r"(?:['`\u0091\u0092\u2018\u2019]|&(?i:apos);)"
_CLITIC = "(?:[sSdDmM]|(?i:re|ve|ll))"
_HYPHEN = r"[-_\u058A\u2010\u2011]"
_SPACE = r"[ \t\u00A0\u2000-\u200A\u3000]"
_SPACE_OR_NEWLINE = r"[ \t\u00A0\u2000-\u200A\u3000\n]"
_DIGIT = f"[{character_class(DIGITS)}]"
_NUMBER = rf"(?:{_DIGIT}+(?:[.:,\u00AD\u066B\u066C]{_DIGIT}+)*|(?:[.:,\u00AD\u066B\u066C]{_DIGIT}+)+)"
_HYPHEN_PART = f"(?:[dDlLoO]{_APOSTROPHE_OR_BACKQUOTE}{_A})?{_A}+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_HYPHENATED = f"{_HYPHEN_PART}(?:{_HYPHEN}{_HYPHEN_PART})*"
_ASCII_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:{_ACRONYM}|[A-Za-z0-9\u00AD]+))+"
_AMPERSAND = r"(?:&(?i:amp;)?|\+)"
_CAPITALS = f"[A-Z]+(?:{_AMPERSAND}[A-Z]+)+"
_SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"

# Abbreviations that keep their final period. One character of look-ahead belongs to those that can end a sentence.
_FINAL_ABBREVIATIONS = (
    "(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu(?:rs)?|fri"
    "|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
    "|inc|cos?|corp|pp?t[ey]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|jr|sr|bros|ed\\.d|ph\\.d"
    "|blvd|rd|esq|etc|al|seq|bldg)"
    "|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
_ABBREVIATIONS = (
    "(?i:mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt"
    "|cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme"
    f"|msgr|sfc|vs|alex|wm|jos|cie|a\\.k\\.a|cf|treas|ph|invt|elec|natl|mtg|mfg|dept|cont{_APOSTROPHE}d)"
)
_NUMBERED = "(?i:ca|figs?|prop|nos?|art|bldg|pp|op)"  # keep it before a digit only
# Words that start a sentence: a single letter before one of them loses its period.
_SENTENCE_STARTS = (
    "A(?i:bout|ccording|dditionally|fter|n|s|t)?|B(?i:ut)|E(?i:arlier)|H(?i:e|er|ere|owever)|I(?i:f|n|t)|L(?i:ast)"
    "|M(?i:any|ore|r\\.|s\\.)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)"
    "|T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hen|hile|hat)|Y(?i:et|ou)"
)
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_TAG = (
    r"(?:<[!?][A-Za-z\-][^>\n]*>"
    rf"|</{_TAG_NAME}{_SPACE}*>"
    rf"|<{_TAG_NAME}(?:{_SPACE}+{_TAG_NAME}(?:{_SPACE}*={_SPACE}*(?:'[^'\n]*'|\"[^\"\n]*\"|{_TAG_NAME}))?)*"
    rf"{_SPACE}*/?{_SPACE}*>)"
)
_EXTENSIONS = (
    "(?i:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar"
    "|txt|wav|x|xml|zip)"
)
_URL_END = r"[^ \t\n\"<>|(){}.!?,\-\u00A0]"
_PATH = rf"/[^ \t\n\"<>|()\u00A0]+{_URL_END}"
# The range from comma to underscore holds digits and capitals: a domain is recognized in lower case only.
_DOMAIN = r"[^ \t\n\"'`<>|.!?,-_$(){}\u00A0]"
_MAIL_NAME = r"[^ \t\n\"<>|(){}.\u00A0]"

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SINGLES = {
    "\u0080": "$", "\u00A4": "$", "\u20A0": "$", "\u20AC": "$", "\u00A3": "#", "\u00A2": "cents",
    "\u00BC": "1/4", "\u00BD": "1/2", "\u00BE": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    **dict.fromkeys("\u0096\u0097\u2013\u2014\u2015\u2026\u0085\u00AD\"", ""), **_BRACKETS,
}  # fmt: skip
_QUOTES = {
    **dict.fromkeys("\u0091\u2018\u201B\u2039", "`"), **dict.fromkeys("\u0092\u2019\u203A", "'"),
    **dict.fromkeys("\u0093\u201C\u00AB", "``"), **dict.fromkeys("\u0094\u201D\u00BB", "''"),
}  # fmt: skip
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "", "apos": "", "mdash": "", "ndash": "", "md": "", "nbsp": ""}


def _word(text: str) -> str:
    return text.replace("\u00ad", "")


def _unchanged(text: str) -> str:
    return text


def _nothing(text: str) -> str:
    return ""


def _joined(text: str) -> str:
    """Keep the spaces of a token as no-break spaces, and name its round brackets."""
    return _round_brackets(re.sub(_SPACE_OR_NEWLINE, "\u00a0", text))


def _tag(text: str) -> str:
    return re.sub(r"\s", "\u00a0", text)


def _round_brackets(text: str) -> str:
    return text.replace("(", "-lrb-").replace(")", "-rrb-")


def _curly_quotes(text: str) -> str:
    return "".join(_QUOTES.get(character, character) for character in text)


def _clitic(text: str) -> str:
    return "'" + re.sub(f"^{_APOSTROPHE}", "", text)


def _single(text: str) -> str:
    return _SINGLES.get(text, text)


def _entity(text: str) -> str:
    return _ENTITIES[text[1:-1].lower()]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What a rule matches, token and look-ahead, and what becomes of the token (the group `t` if there is one)."""

    pattern: re.Pattern[str]
    output: Callable[[str], str]


def _rule(pattern: str, output: Callable[[str], str] = _word) -> _Rule:
    return _Rule(re.compile(pattern), output)


_RULES = [
    # Words that are split in two: the second half is look-ahead.
    _rule("(?P<t>(?i:can))(?i:not)"),
    _rule("(?P<t>(?i:gon))(?i:na)"),
    _rule("(?P<t>(?i:got))(?i:ta)"),
    _rule("(?P<t>(?i:lem))(?i:me)"),
    _rule("(?P<t>(?i:gim))(?i:me)"),
    _rule("(?P<t>(?i:wan))(?i:na)"),
    _rule("(?P<t>'[tT])(?i:is|was)"),
    # Tags, comments and declarations.
    _rule(_TAG, _tag),
    _rule(r"&(?i:amp|lt|gt|quot|apos|mdash|ndash|md|nbsp);", _entity),
    _rule(r"&(?:[hH][tT]|[tT][lL]|[uU][rR]|[lL][rR]|[qQ][cClLrR]|[oOcC][dD][qQ]);", _unchanged),
    _rule(r"&#[0-9]+;", _unchanged),
    # n't and what stands before it.
    _rule(f"(?P<t>[A-Za-z\\u00AD]*[A-MO-Za-mo-z]\\u00AD*)[nN]{_APOSTROPHE_OR_BACKQUOTE}[tT]"),
    _rule(f"[nN]{_APOSTROPHE_OR_BACKQUOTE}[tT]", lambda text: "n`t" if text[1] in "`\u0091\u2018" else "n't"),
    # Numbers.
    _rule(rf"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}", _joined),
    _rule(rf"(?:{_DIGIT}{{1,4}}[- \u00A0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}", _joined),
    _rule(
        r"(?:\([0-9]{2,3}\)[ \u00A0]?|(?:[0-9]{2,4}[- \u00A0])?[0-9]{2,4}[- \u00A0])[0-9]{3,4}[- \u00A0]?[0-9]{3,5}",
        _joined,
    ),
    _rule(f"[+-]?{_NUMBER}"),
    # Clitics. Those that the start of a quotation could be taken for need a character that is no letter behind them.
    _rule(f"(?P<t>{_WORD}){_APOSTROPHE}{_CLITIC}"),
    _rule(f"(?P<t>{_APOSTROPHE}{_CLITIC})[^A-Za-z]", _clitic),
    # Addresses.
    _rule(rf"(?i:https?)://[^ \t\n\"<>|(){{}}\u00A0]+{_URL_END}", _unchanged),
    _rule(rf"(?i:www)\.(?:[^ \t\n\"`<>|.!?,(){{}}\u00A0]+\.)+[A-Za-z]{{2,4}}(?:{_PATH})?", _unchanged),
    _rule(rf"(?:{_DOMAIN}+\.)+(?i:com|net|org|edu)(?:{_PATH})?"),
    _rule(
        rf"(?:&(?i:lt);|<)?[A-Za-z0-9][^ \t\n\"<>|(){{}}\u00A0]*@(?:{_MAIL_NAME}+\.)*{_MAIL_NAME}+(?:&(?i:gt);|>)?",
        _unchanged,
    ),
    _rule(r"@[A-Za-z_][A-Za-z_0-9]*", _unchanged),
    _rule(f"#{_LETTER}+", _unchanged),
    # Words with apostrophes.
    _rule(f"(?i:o{_APOSTROPHE_OR_BACKQUOTE}clock)", _unchanged),
    _rule(
        "(?i:"
        f"{_APOSTROPHE}(?:n{_APOSTROPHE}?|em|till?|cause)"
        f"|{_APOSTROPHE}[2-9]0s|c{_APOSTROPHE}mon|o{_APOSTROPHE}o|e{_APOSTROPHE}er|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l"
        f"|nat{_APOSTROPHE}l|nor{_APOSTROPHE}easter|s{_APOSTROPHE}mores|cap{_APOSTROPHE}n|c{_APOSTROPHE}est"
        f"|ol{_APOSTROPHE}|somethin{_APOSTROPHE}|dunkin{_APOSTROPHE})",
        _unchanged,
    ),
    _rule(f"(?P<t>{_APOSTROPHE}[0-9][0-9])\\s", _unchanged),
    _rule(f"[A-HJ-XZn]{_APOSTROPHE_OR_BACKQUOTE}[{character_class(LETTERS)}]{{2,}}", _unchanged),
    _rule(
        f"[{character_class(LETTERS)}]+[aeiouyAEIOUY]{_APOSTROPHE_OR_BACKQUOTE}[aeiouA-Z][{character_class(LETTERS)}]*",
        _unchanged,
    ),
    _rule(f"[dDjJlL]{_APOSTROPHE}", _unchanged),
    _rule(f"(?P<t>[yY]{_APOSTROPHE}){_LETTER}", _unchanged),
    _rule(f"(?P<t>')[A-Za-z][^{_SPACE_OR_NEWLINE[1:-1]}]", _nothing),
    _rule(f"{_APOSTROPHE}{_CLITIC}", _clitic),
    # Abbreviations.
    _rule(rf"(?P<t>[A-Za-z])\.{_SPACE_OR_NEWLINE}+(?:{_SENTENCE_STARTS}|{_TAG}){_SPACE_OR_NEWLINE}"),
    _rule(r"[A-Za-z]\."),
    _rule(_ACRONYM),
    _rule(rf"(?P<t>(?:{_FINAL_ABBREVIATIONS})\.)(?:[\s\S]|\Z)"),
    _rule(rf"{_ABBREVIATIONS}\."),
    _rule(rf"(?P<t>{_NUMBERED}\.){_SPACE_OR_NEWLINE}?[0-9]"),
    _rule(rf"(?P<t>(?:{_WORD}|{_HYPHENATED}|{_ASCII_HYPHENATED}|{_CAPITALS})\.)[,;:\u3001]"),
    _rule(f"(?P<t>[{_A[1:-1]}\\u00AD]+(?:\\.{_A}+)*\\.{_EXTENSIONS})[\\s.?!,]", _unchanged),
    # Words.
    _rule(_WORD),
    _rule(_HYPHENATED),
    _rule(_ASCII_HYPHENATED),
    _rule("S&(?:P-500|Ls)", _unchanged),
    _rule(_CAPITALS, lambda text: re.sub("&amp;", "&", text, flags=re.IGNORECASE)),
    _rule(rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}"),
    _rule("(?i:pro|anti)-"),
    _rule(r"[cC]\+\+|[cCfF]#"),
    _rule("-(?i:[lr][rcs]b)-", _unchanged),
    # Money.
    _rule(r"[A-Z]*\$"),
    # Smileys.
    _rule(r"(?P<t>[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z0-9])", _round_brackets),
    _rule(r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][-_.]?[-^x=~<>']\)", _round_brackets),
    # Punctuation and symbols.
    _rule("-{5,}", _unchanged),
    _rule("-{1,4}", _nothing),
    _rule(r"\.{3,5}|\.[ \u00A0]\.[ \u00A0]\.", _nothing),
    _rule(r"[?!]+", lambda text: text if len(text) > 1 else ""),
    _rule(r"\*+|\\\*|_+|#+|@+|<<|>>", _unchanged),
    _rule("''", _nothing),
    _rule(r"[\u207A\u207B]?[\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u208A\u208B]?[\u2080-\u2089]+", _unchanged),
    _rule(r"[`\u0091-\u0094\u2018-\u201F\u2039\u203A\u00AB\u00BB]{1,2}", _curly_quotes),
    _rule(rf"[!-/:-@\[-`{{-~\u0080\u0085\u0096\u0097\u00AD{character_class(SYMBOLS)}]", _single),
]


# Whitespace-delimited parts of captions whose tokens depend on nothing around them; most captions have no others.
_INDEPENDENT = re.compile(f"(?!.*(?<![A-Za-z]){_NUMBERED}\\.$)[A-Za-z'\",;:!?-]*(?:[A-Za-z]{{2}}\\.)?|\\.+")
# A word of letters that only whitespace follows is a token, whatever comes next.
_PLAIN_WORD = re.compile("(?!(?:cannot|gonna|gotta|lemme|gimme|wanna)[ \n])[a-z]+(?=[ \n])", re.IGNORECASE | re.ASCII)


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenize captions as pycocoevalcap's PTBTokenizer does, without Java.

    Args:
        captions: all captions of one file in their order: a caption's tokens can depend on the next caption.

    Returns:
        The tokens of each caption joined by single spaces. A token can contain a no-break space.
    """
    lines = [_LINE_SEPARATORS.sub(" ", caption.replace("\n", " ")) for caption in captions]
    text = "\n".join(lines)
    known: dict[str, str | None] = {}  # tokens of independent parts; None for a part that depends on its surroundings
    tokenized = []
    start = 0
    for line in lines:
        end = start + len(line)
        kept: list[str] | None = []
        for part in line.split(" "):
            if part not in known:
                known[part] = _lex_independent(part)
            tokens = known[part]
            if tokens is None:
                kept = None
                break
            if tokens:
                kept.append(tokens)
        # The end of the file is a surrounding, too.
        tokenized.append(" ".join(_lex(text, start, end) if kept is None or end == len(text) else kept))
        start = end + 1
    return tokenized


def count_line_separators(captions: Sequence[str]) -> int:
    """Return in how many captions pycocoevalcap's tokenizer would find a line end and shift all later captions."""
    return sum(_LINE_SEPARATORS.search(caption) is not None for caption in captions)


def _lex_independent(part: str) -> str | None:
    """Return the tokens of a whitespace-delimited part, None if they depend on what surrounds it."""
    return " ".join(_lex(part + " a", 0, len(part))) if _INDEPENDENT.fullmatch(part) else None


def _lex(text: str, start: int, end: int) -> list[str]:
    """Return the tokens of text[start:end] that are kept; look-ahead may read beyond the end."""
    tokens = []
    position = start
    while position < end:
        if (plain := _PLAIN_WORD.match(text, position)) and text[position - 1 : position] in ("", " ", "\n"):
            tokens.append(plain[0].lower())
            position = plain.end()
            continue
        if text[position] == " ":
            position += 1
            continue
        best, output = None, _nothing
        for rule in _RULES:
            match = rule.pattern.match(text, position)
            if match is not None and match.end() > (position if best is None else best.end()):
                best, output = match, rule.output
        if best is None:  # whitespace, or a character that leaves no token
            position += 1
            continue
        token_end = best.end("t") if "t" in best.re.groupindex else best.end()
        token_end = min(token_end, end)  # a tag that spans captions ends with its caption
        token = output(text[position:token_end]).lower()
        if token and token not in _REMOVED:
            tokens.append(token)
        position = token_end
    return tokens
