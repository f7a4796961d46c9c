"""What people paste: each text with the service that they chose, and the message that they get; None for a key."""

from __future__ import annotations

import json
from typing import NamedTuple

BODY = "Zq7Rk2Lw9Xc4Vb6Nm1"
"""The made-up middle of every key here. No message, page or log line may repeat it."""

PROJECT = f"sk-proj-{BODY}AbCd"
CLAUDE = f"sk-ant-api03-{BODY}igAA"
GROQ = f"gsk_{BODY}cdef"
GEMINI = f"AIzaSy{BODY}wxyz"

ACCOUNT = json.dumps(
    {
        "type": "service_account",
        "project_id": "my-project-123",
        "private_key_id": "0123456789abcdef0123456789abcdef",
        "private_key": f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----\n",  # pragma: allowlist secret
        "client_email": "keyman@my-project-123.iam.gserviceaccount.com",
    },
    indent=2,
)
"""A service-account file of Google, as it is downloaded; its private key is made up."""

QUOTED = "has quotation marks around it; remove them"
BACKTICKS = "has backticks around it; remove them"
PARENTHESES = "has parentheses around it; remove them"
ANGLES = "has angle brackets around it; remove them, and replace a placeholder by your key"
BRACKETS = "has brackets around it; remove them"
ASSIGNED = "is an assignment (NAME=value); paste only the value after the equals sign"
NAMED = "has its name in front of it (name: value); paste only the value after the colon"
BEARER = "begins with Bearer; paste only the key after it"
HEADER = "is an Authorization header; paste only the key in it"
TRAILING = "ends with a comma or a semicolon; remove it"
ESCAPED = "ends with a backslash or an escape such as \\n, which is not a line break; remove it"
ADDRESS = "is an address (URL), not a key; copy the key that the provider shows there"
MASK = "is a mask, which shows only the ends of a key; copy the whole key from the provider, or create a new one there"
LINES = "has more than one line; paste only one key, without other lines"
SPACE = "contains white space; paste only the key, without anything before or after it"
JSON = "is JSON, or has brackets around it; paste only the key in it"
FILE = (
    "must be the whole JSON file from Google Vertex AI, an object with type, private_key_id, private_key, "
    "client_email; paste the file as it is"
)
TOO_LONG = "must be at most 16 KiB long"
LENGTH = "must be 8 to 8,192 characters long"
ASCII = (
    "must contain only printable ASCII characters, without white space; if you copied it from a document, copy it "
    "again from the provider's page"
)


def invisible(character: str) -> str:
    return f"contains an invisible character ({character}); copy the key again, directly from the provider's page"


def of_another(owner: str, mine: str) -> str:
    return f"looks like a key of {owner}, not of {mine}: choose that service instead"


class Paste(NamedTuple):
    text: str
    message: str | None
    service: str = "OPENAI"


PASTES = (
    # keys, as providers give them
    Paste(PROJECT, None),
    Paste(f"sk-{BODY}AbCd", None),
    Paste(f"sk-svcacct-{BODY}_{BODY}-AbCd", None),
    Paste(CLAUDE, None, "ANTHROPIC"),
    Paste(GROQ, None, "GROQ"),
    Paste(GEMINI, None, "GOOGLE"),
    Paste(f"{BODY}0123456789abcdef", None, "AZURE_OPENAI"),
    Paste(f"{BODY}.{BODY}", None, "COHERE"),
    Paste(f"{BODY}==", None, "COHERE"),
    Paste(f"{BODY}/+{BODY}=", None, "COHERE"),
    Paste(f"0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0:{BODY}", None, "COHERE"),
    Paste(f"ey{BODY}.ey{BODY}.{BODY}-_", None, "COHERE"),
    Paste("x" * 1216, None, "COHERE"),
    Paste("x" * 8192, None, "COHERE"),
    Paste("12345678", None, "COHERE"),
    Paste(f"https-{BODY}", None, "COHERE"),
    Paste(f"bearer-{BODY}", None, "COHERE"),
    Paste(f"a..b{BODY}", None, "COHERE"),
    Paste(f"**{BODY}**", None, "COHERE"),
    Paste(f"(eu){BODY}", None, "COHERE"),
    # white space around a key is stripped
    Paste(f"  {PROJECT}  ", None),
    Paste(f"{PROJECT}\n", None),
    Paste(f"\r\n\t{PROJECT}\r\n", None),
    Paste(f"\u00a0{PROJECT}\u2003", None),
    # quotation marks and brackets
    Paste(f'"{PROJECT}"', QUOTED),
    Paste(f"'{PROJECT}'", QUOTED),
    Paste(f"\u201c{PROJECT}\u201d", QUOTED),
    Paste(f"\u201e{PROJECT}\u201c", QUOTED),
    Paste(f"\u2018{PROJECT}\u2019", QUOTED),
    Paste(f"\u00ab{PROJECT}\u00bb", QUOTED),
    Paste(f"\u2039{PROJECT}\u203a", QUOTED),
    Paste(f'"{PROJECT}', QUOTED),
    Paste(f"{PROJECT}'", QUOTED),
    Paste(f"\u201c{PROJECT}", QUOTED),
    Paste(f'b"{PROJECT}"', QUOTED),
    Paste(f'""{PROJECT}""', QUOTED),
    Paste(f'"{PROJECT[:8]} {PROJECT[8:]}"', QUOTED),
    Paste(f"`{PROJECT}`", BACKTICKS),
    Paste(f"```{PROJECT}```", BACKTICKS),
    Paste(f"({PROJECT})", PARENTHESES),
    Paste(f"<{PROJECT}>", ANGLES),
    Paste("<YOUR_API_KEY>", ANGLES),
    Paste(f"[{PROJECT}]", BRACKETS),
    # the key with its name
    Paste(f"OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f'OPENAI_API_KEY="{PROJECT}"', ASSIGNED),
    Paste(f'export OPENAI_API_KEY="{PROJECT}"', ASSIGNED),
    Paste(f"export OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f"export  OPENAI_API_KEY = '{PROJECT}'", ASSIGNED),
    Paste(f"set OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f'$env:OPENAI_API_KEY = "{PROJECT}"', ASSIGNED),
    Paste(f"-e OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f"--api-key={PROJECT}", ASSIGNED),
    Paste(f"ENV OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f"const apiKey = '{PROJECT}';", ASSIGNED),
    Paste(f'api_key="{PROJECT}",', ASSIGNED),
    Paste(f"openai.api_key = '{PROJECT}'", ASSIGNED),
    Paste(f'apiKey := "{PROJECT}"', ASSIGNED),
    Paste(f"x-api-key={PROJECT}", ASSIGNED),
    Paste(f"# OPENAI_API_KEY={PROJECT}", ASSIGNED),
    Paste(f"api_key: {PROJECT}", NAMED),
    Paste(f"OpenAI key: {PROJECT}", NAMED),
    Paste(f'"api_key": "{PROJECT}"', NAMED),
    Paste(f'"api_key": "{PROJECT}",', NAMED),
    Paste(f'"apiKey":"{PROJECT}"', NAMED),
    Paste(f"'OPENAI_API_KEY': '{PROJECT}'", NAMED),
    Paste(f'apiKey:"{PROJECT}"', NAMED),
    Paste(f"x-api-key: {CLAUDE}", NAMED, "ANTHROPIC"),
    Paste(f"x-api-key:{CLAUDE}", NAMED, "ANTHROPIC"),
    Paste(f"x-goog-api-key:{GEMINI}", NAMED, "GOOGLE"),
    Paste(f"Bearer {PROJECT}", BEARER),
    Paste(f"bearer {PROJECT}", BEARER),
    Paste(f'"Bearer {PROJECT}"', BEARER),
    Paste(f"Authorization: Bearer {PROJECT}", HEADER),
    Paste(f"authorization:Bearer {PROJECT}", HEADER),
    Paste(f'"Authorization": "Bearer {PROJECT}"', HEADER),
    Paste(f"Authorization=Bearer {PROJECT}", HEADER),
    Paste(f"Token r8_{BODY}", HEADER, "REPLICATE"),
    # what stays at the end
    Paste(f"{PROJECT},", TRAILING),
    Paste(f"{PROJECT};", TRAILING),
    Paste(f'"{PROJECT}",', TRAILING),
    Paste(f"{PROJECT}\\n", ESCAPED),
    Paste(f"{PROJECT}\\r", ESCAPED),
    Paste(f"{PROJECT}\\r\\n", ESCAPED),
    Paste(f"{PROJECT}\\", ESCAPED),
    # addresses
    Paste("https://platform.openai.com/api-keys", ADDRESS),
    Paste("HTTPS://console.groq.com/keys", ADDRESS, "GROQ"),
    Paste("http://localhost:11434/v1", ADDRESS),
    Paste("platform.openai.com/api-keys", ADDRESS),
    Paste("www.perplexity.ai/settings", ADDRESS, "PERPLEXITY"),
    Paste(f"https://api.example.com/v1?key={BODY}", ADDRESS),
    Paste(f"postgresql://ada:{BODY}@db.example.com/app", ADDRESS),
    # masks: keyman's own, and those of the providers
    Paste("sk-...1234", MASK),
    Paste("...1234", MASK),
    Paste("...", MASK),
    Paste("sk-proj-...AbCd", MASK),
    Paste("sk-ant-api03-R2D...igAA", MASK, "ANTHROPIC"),
    Paste("sk-p****cdef", MASK),
    Paste("sk-p************************************cdef", MASK),
    Paste("gsk_\u2022\u2022\u2022\u2022", MASK, "GROQ"),
    Paste("gsk_\u2022\u2022\u2022\u2022cdef", MASK, "GROQ"),
    Paste("AIza\u2026wxyz", MASK, "GOOGLE"),
    Paste("\u25cf\u25cf\u25cf\u25cf\u25cf\u25cf\u25cf\u25cf", MASK),
    Paste("********************", MASK),
    Paste("hf_\u00b7\u00b7\u00b7\u00b7\u00b7\u00b7Wxyz", MASK, "HUGGINGFACE"),
    Paste("sk-...1234", MASK, "ANTHROPIC"),
    # invisible and foreign characters
    Paste(f"\u200b{PROJECT}", invisible("U+200B ZERO WIDTH SPACE")),
    Paste(f"{PROJECT}\u200b", invisible("U+200B ZERO WIDTH SPACE")),
    Paste(f"{PROJECT[:9]}\u200b{PROJECT[9:]}", invisible("U+200B ZERO WIDTH SPACE")),
    Paste(f"\ufeff{PROJECT}", invisible("U+FEFF ZERO WIDTH NO-BREAK SPACE")),
    Paste(f"{PROJECT}\u200d", invisible("U+200D ZERO WIDTH JOINER")),
    Paste(f"{PROJECT}\u2060", invisible("U+2060 WORD JOINER")),
    Paste(f"{PROJECT[:9]}\u00ad{PROJECT[9:]}", invisible("U+00AD SOFT HYPHEN")),
    Paste(f"{PROJECT[:9]}\u00a0{PROJECT[9:]}", invisible("U+00A0 NO-BREAK SPACE")),
    Paste(f"{PROJECT[:9]}\u2028{PROJECT[9:]}", invisible("U+2028 LINE SEPARATOR")),
    Paste(f"{PROJECT}\ufe0f", invisible("U+FE0F VARIATION SELECTOR-16")),
    Paste(f"{PROJECT}\u2800", invisible("U+2800 BRAILLE PATTERN BLANK")),
    Paste(f"{PROJECT}\u3164", invisible("U+3164 HANGUL FILLER")),
    Paste(f"\u202e{PROJECT}", invisible("U+202E RIGHT-TO-LEFT OVERRIDE")),
    Paste(f"{PROJECT}\U000e0041", invisible("U+E0041 TAG LATIN CAPITAL LETTER A")),
    Paste(f"{PROJECT[:9]}\x00{PROJECT[9:]}", invisible("U+0000")),
    Paste(f"{PROJECT[:9]}\x1b{PROJECT[9:]}", invisible("U+001B")),
    Paste(f"sk\u2013proj\u2013{BODY}", ASCII),
    Paste(f"{PROJECT}\u00e9", ASCII),
    Paste(f"{PROJECT}\U0001f511", ASCII),
    Paste(f"s\u043a-proj-{BODY}", ASCII),
    # more than one key, and more than a key
    Paste(f"{PROJECT}\n{CLAUDE}", LINES),
    Paste(f"{PROJECT}\r\n{PROJECT}", LINES),
    Paste(f"OPENAI_API_KEY={PROJECT}\nANTHROPIC_API_KEY={CLAUDE}\n", LINES),
    Paste(f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----", LINES),  # pragma: allowlist secret
    Paste(f"{PROJECT} {PROJECT}", SPACE),
    Paste(f"{PROJECT[:9]}\t{PROJECT[9:]}", SPACE),
    Paste(f"my key is {PROJECT}", SPACE),
    Paste(f"{PROJECT} # production", SPACE),
    Paste("ask Ada for the key", SPACE),
    # the wrong length
    Paste("short", LENGTH),
    Paste("1234567", LENGTH),
    Paste("x" * 8193, LENGTH),
    # a key of another service
    Paste(CLAUDE, of_another("Anthropic", "OpenAI")),
    Paste(PROJECT, of_another("OpenAI", "Anthropic"), "ANTHROPIC"),
    Paste(GROQ, of_another("Groq", "Google Gemini"), "GOOGLE"),
    Paste(GEMINI, of_another("Google Gemini", "Mistral AI"), "MISTRAL"),
    Paste(f"bedrock-api-key-{BODY}", of_another("Amazon Bedrock", "OpenAI")),
    Paste(f"AQ.{BODY}", of_another("Google Gemini", "OpenAI")),
    Paste(f"fpk_{BODY}", of_another("Fireworks AI", "OpenAI")),
    Paste(f"AQ.{BODY}", None, "GOOGLE"),
    Paste(f"fpk_{BODY}", None, "FIREWORKS"),
    Paste(f"bedrock-api-key-{BODY * 60}==", None, "AWS_BEDROCK"),
    # JSON, and what is no JSON
    Paste(ACCOUNT, None, "GOOGLE_VERTEX"),
    Paste(f"\n{ACCOUNT}\n", None, "GOOGLE_VERTEX"),
    Paste(ACCOUNT.replace("\n", "\r\n"), None, "GOOGLE_VERTEX"),
    Paste(json.dumps(json.loads(ACCOUNT)), None, "GOOGLE_VERTEX"),
    Paste(json.dumps({**json.loads(ACCOUNT), "note": "x" * 15_000}), None, "GOOGLE_VERTEX"),
    Paste(json.dumps({**json.loads(ACCOUNT), "note": "x" * 16_384}), TOO_LONG, "GOOGLE_VERTEX"),
    Paste(json.dumps({**json.loads(ACCOUNT), "note": "\u00e9\u4e2d"}, ensure_ascii=False), None, "GOOGLE_VERTEX"),
    Paste(ACCOUNT[:-1], FILE, "GOOGLE_VERTEX"),
    Paste(ACCOUNT + ACCOUNT, FILE, "GOOGLE_VERTEX"),
    Paste(ACCOUNT.replace('"private_key"', '"privat"'), FILE, "GOOGLE_VERTEX"),
    Paste(ACCOUNT.replace('"0123456789abcdef0123456789abcdef"', "7"), FILE, "GOOGLE_VERTEX"),
    Paste("{}", FILE, "GOOGLE_VERTEX"),
    Paste(f"{{{PROJECT}}}", FILE, "GOOGLE_VERTEX"),
    Paste(f"AQ.{BODY}", FILE, "GOOGLE_VERTEX"),
    Paste(f"[{json.dumps(BODY)}]", BRACKETS, "GOOGLE_VERTEX"),
    Paste(f"\ufeff{ACCOUNT}", invisible("U+FEFF ZERO WIDTH NO-BREAK SPACE"), "GOOGLE_VERTEX"),
    Paste(json.dumps(ACCOUNT), QUOTED, "GOOGLE_VERTEX"),
    Paste(ACCOUNT, of_another("Google Vertex AI", "Google Gemini"), "GOOGLE"),
    Paste(ACCOUNT, of_another("Google Vertex AI", "OpenAI")),
    Paste(json.dumps({"api_key": PROJECT}), JSON),
    Paste(f'{{"api_key": "{PROJECT}"', JSON),
    Paste(f"{{{PROJECT}}}", JSON),
    Paste("{{ secrets.OPENAI_API_KEY }}", JSON),
    Paste('{"a":' * 3_000, JSON),
)
