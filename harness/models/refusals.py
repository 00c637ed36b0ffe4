"""Recognising that a captioner refused, by how a sentence begins, in the languages that open models answer in.

Words cannot tell every refusal. The cosine of image and caption, which ``harness.metrics.row_notes`` looks at, is the
other half: a refusal resembles no image.
"""

from __future__ import annotations

import re

_UNABLE = r"(?:\w+ )?(?:unable|not able|not comfortable|not allowed|not permitted|not going)"
_CANNOT = (
    rf"(?:can ?not|can't|could not|couldn't|won't|will not|must not|(?:am|'m|are|'re) {_UNABLE}"
    r"|(?:do not|don't) feel comfortable)"
)
_TELL = r"(?:to |with )?(?:assist|comply|fulfil|provide|providing|describ|generat|creat|produc|process|caption)"
_DEED = (
    rf"(?:{_TELL}|(?:to |with )?(?:help|engag|continu|discuss|answer|extract|rewrit|analy[sz]|participat|respond|share|"
    r"support|do (?:that|this)|"
    r"(?:see|view|access|open) (?:the |this |that |any |your )?(?:image|picture|photo|attachment|content)s?\b))"
)
_ENDED = r"(?:blocked|denied|declined|refused|rejected|filtered|flagged|removed|withheld|restricted|censored|redacted)"
_BLOCKED = rf"(?:cannot be (?:described|processed|fulfilled|captioned|shown)|(?:has been|was|is) {_ENDED})"
_THING = r"(?:request|prompt|query|content|image|photo|picture|response|caption|description|message|access|output)"
_RULES = r"(?:guideline|polic(?:y|ies)|safety|rule|restriction|standard|concern|reason|privacy|terms|ethic|filter)"
_BECAUSE = (  # a clause before the refusal: "Due to safety guidelines, ..."
    r"(?:due to|because of|owing to|based on|in (?:accordance|line|compliance|keeping) with|according to|as per|per"
    rf"|under|given|for|out of|to (?:comply|adhere)) (?:[^.,]{{0,60}})?{_RULES}[^.,]{{0,40}},? ?"
)
_WE = r"(?:i|we|this (?:assistant|model|system))"
_ENGLISH = (
    rf"(?:i'm|i am|we're|we are) (?:\w+ )?sorry\b"
    rf"|sorry\W*$|sorry,? (?:but )?(?:i|we|can't|cannot|this|that|no)\b|{_WE} (?:sincerely |deeply )?apologi[sz]e\b"
    rf"|(?:my |sincere )?apologies[,.]"
    rf"|(?:(?:unfortunately|however|but|no|regrettably|{_BECAUSE}),? ?)?(?:(?:i'm|i am) afraid,? (?:that )?)?"
    rf"{_WE} ?{_CANNOT} {_DEED}"
    rf"|(?:cannot|can't|unable|not able|refus(?:e|ing)|declin(?:e|ing)) {_TELL}"
    rf"|{_WE} (?:must |have to |need to |am (?:required|obliged|instructed) to )?(?:decline|refuse)\b"
    rf"|i(?:'d| would)? (?:prefer|rather) not\b"
    rf"|{_WE} (?:do not have|don't have|have no|lack) (?:the |any )?(?:ability|capability|capacity|permission)\b"
    rf"|it(?:'s| is| would be| would)? (?:not (?:be )?appropriate|inappropriate|against \w+ \w+) (?:for me )?to {_DEED}"
    rf"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b|(?:i'm|i am) (?:just |only )?an ai\b"
    rf"|{_BECAUSE}(?:this|that|the|your|no) {_THING}s? (?:\w+ )?(?:cannot|can not|can't|is|was|has|will)\b"
    rf"|(?:this|that|the|your) {_THING} (?:(?:may |might |appears to |seems to )?(?:violates?|goes against "
    rf"(?:my|our|the)\b|is against (?:\w+ ){{0,3}}{_RULES}|is in violation of\b)|{_BLOCKED})"
    rf"|(?:this |that |the |your )?{_THING} (?:was |is |has been )?(?:{_ENDED}|not (?:allowed|permitted|available)"
    rf"|unavailable)\b(?: (?:by|due|because|for)\b.*)?\W*$"
    rf"|no (?:caption|description) (?:is |was |can be )?(?:available|provided|given|possible|generated)\W*$"
    rf"|{_ENDED}\W*$|(?:my|our|the) (?:\w+ )?{_RULES}\w* (?:prevents?|prohibits?|forbids?|(?:do|does)(?: not|n't) "
    rf"(?:allow|permit))\b|please (?:provide|try|upload|submit|send|ask) "
    r"(?:a |an |me )?(?:different|another|other)"
)
_OTHERS = (  # Chinese, Japanese, Korean, Spanish, French, German, Portuguese, Italian, Dutch, Polish, Russian, ...
    r"(?:非常|很|真的)?(?:抱歉|對不起|对不起|遗憾|遺憾|不好意思)"
    r"|(?:由于|根据|出于|因为)?[^。]{0,30}(?:我|本人|您的请求|该请求|此请求)[^。]{0,8}(?:无法|不能|無法|不可以|没办法|拒绝|违反)"
    r"|(?:无法|無法|不能|拒绝)(?:描述|提供|生成|回答|协助|帮助|处理|满足|继续|识别|分析|完成)|(?:请求|内容|图片)(?:已)?被"
    r"|申し訳|すみません|ごめんなさい|[^。]{0,40}(?:できません|できかねます|お答えでき|お手伝いでき|対応でき)"
    r"|죄송|미안|[^.]{0,40}(?:할 수 없|수 없습니다|도와드릴 수|제공할 수 없)"
    r"|lo (?:siento|lamento)|(?:disculpa|perd[oó]n)|"
    r"(?:lamentablemente,? )?no (?:puedo|podemos|me es posible|es posible) "
    r"|(?:je suis )?d[ée]sol[ée]e?\b|je (?:ne peux|ne suis pas en mesure|regrette|refuse)|(?:il m'est )?impossible de "
    r"|(?:es )?tut mir (?:sehr )?leid|leider\b|entschuldig|ich (?:kann|darf|möchte) [^.]{0,60}nicht\b"
    r"|(?:me )?desculp|sinto muito|lamento\b|(?:infelizmente,? )?(?:eu )?n[ãa]o (?:posso|consigo|[ée] poss[íi]vel) "
    r"|mi dispiace|(?:purtroppo,? )?non (?:posso|sono in grado|[èe] possibile) |scusa"
    r"|het spijt me|(?:helaas )?(?:kan ik|ik kan) [^.]{0,60}niet\b|przepraszam|niestety\b|nie mog[ęe] "
    r"|извините|простите|к сожалению|(?:я )?не могу |вибачте|(?:я )?не можу "
    r"|عذر[ًا]*|آسف|أعتذر|لا (?:أستطيع|يمكنني)|क्षमा|माफ़|मुझे खेद|[^।]{0,40}नहीं कर सकत"
    r"|üzgünüm|maalesef|xin lỗi|(?:tôi )?không thể |maaf\b|(?:saya )?tidak (?:bisa|dapat) (?!dilihat)|ขออภัย|ขอโทษ"
)
_REFUSAL = re.compile(rf"(?:{_ENGLISH}|{_OTHERS})")
_WITHIN = re.compile(rf"\b(?:and|but|so|that|which),? {_WE} ?{_CANNOT} {_TELL}")  # in a sentence on the image

# What an honest remark leaves open: a part, not the image.
_PART = re.compile(
    r"\b(?:more|further|additional|any other|other|specific|exact|precise|certain)\b"
    r"|\b(?:details?|information|context) (?:about|of|on|regarding|for|in) (?:the|his|her|their|its|what|who|any)\b"
    r"(?! (?:image|photo|picture|content|request|caption|scene)\b)"
    r"|\b(?:identify|identity|names?|name|tell|determine|confirm|verify) (?!this|the (?:image|photo|picture|content)\b)"
)
_NO_CAPTION = re.compile(  # what speaks with the asker, or of the image as a case, describes nothing
    r"(?:thank|sure\b|certainly|of course|here\b|ok\b|okay|hello|hi\b|however|please|if you|let me|feel free|instead)"
    rf"|(?:this|the|your) {_THING} (?:is|contains?|appears?|seems?|includes?|depicts?|shows?|features?|has) "
    r"(?:to )?(?:\w+ ){0,3}(?:explicit|inappropriate|sensitive|sexual\w*|nsfw|adult|graphic|harmful|unsafe|nudity)\b"
)
_SENTENCES = 3  # of an answer in which a refusal may begin
_FEWEST_WORDS = 3  # of a sentence that describes something
_SENTENCE_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])\s*|\n+")


def refused(answer: str) -> bool:
    """Whether an answer is a refusal or says nothing: no letters at all.

    A refusal begins one of the first sentences ("I'm sorry, but I can't ..."), or one of them ends in it ("... and I
    cannot describe it"); words of the kind inside a caption, such as a sign that reads them, do not count. A caption
    with a remark on what it leaves open ("I cannot provide more details about the background") is a caption.
    """
    text = answer.replace("’", "'").strip().lower()
    if not any(character.isalpha() for character in text):
        return "[" not in text
    sentences = [s.strip() for s in _SENTENCE_END.split(_bare(text)) if s.strip()]
    refusing = [s for s in sentences[:_SENTENCES] if _REFUSAL.match(s) or _WITHIN.search(s)]
    if any(not _PART.search(sentence) for sentence in refusing):
        return True
    return bool(refusing) and not any(map(_describes, sentences))


def _describes(sentence: str) -> bool:
    """Whether a sentence, up to where it refuses anything, says what is to be seen."""
    within = _WITHIN.search(sentence)
    said = sentence[: within.start()] if within else sentence
    return len(said.split()) >= _FEWEST_WORDS and not _REFUSAL.match(said) and not _NO_CAPTION.match(said)


def _bare(text: str) -> str:
    """Without emphasis, a bullet, a heading (``caption:``), and quotation marks around the whole."""
    text = re.sub(r"^(?:[-*#>_ ]|(?:\w+ ){0,2}caption\W*:)+", "", text).rstrip("*_ ")
    quoted = re.fullmatch(r"[\"'“\[(](.*)[\"'”\])]", text, flags=re.DOTALL)
    return quoted[1] if quoted and not re.search(r"[\"“”\[\]]", quoted[1]) else text
