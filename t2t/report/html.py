"""One file of HTML that needs nothing else: the template beside this file, what is shown in it, and no network.

All that is shown lies in the file as JSON, and the script puts it in place as text: nothing of it is ever markup.
"""

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any


def document(title: str, content: dict[str, Any]) -> str:
    """The page that shows `content`, whose parts page.js knows by their names.

    The browser is told to fetch nothing and to run no script but this one, by its digest.
    """
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_part("page.html")).substitute(
        title=html.escape(title), style=_part("page.css"), script=script, digest=digest, content=embedded(content)
    )


def embedded(content: Any) -> str:
    """JSON that may stand inside of a script element: no "<" in it, which alone could end that or begin a comment.

    Raises:
        ValueError: a number in it is none that JSON has.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _part(name: str) -> str:
    return files("t2t.report").joinpath(name).read_text(encoding="utf-8")
