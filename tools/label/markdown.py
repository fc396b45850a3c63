"""Markdown of models and owners as safe HTML: no raw HTML, no images, links to the web only.

Whatever a text contains, the page loads nothing for it and runs nothing from it; the content policy forbids it too.
"""

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

MAX_RENDERED = 50_000
"""Longer texts are shown as plain text: rendering them would delay everybody's pages."""
_DEEPEST_HEADING = 6
_HEADING_SHIFT = 2


class _Renderer(RendererHTML):
    """Headings go below those of the page, and a link opens a new window without access to this one."""

    def heading_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"<{_shifted(tokens[idx].tag)}>"

    def heading_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"</{_shifted(tokens[idx].tag)}>\n"

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        tokens[idx].attrSet("target", "_blank")
        tokens[idx].attrSet("rel", "noopener noreferrer nofollow")
        return self.renderToken(tokens, idx, options, env)


def _shifted(tag: str) -> str:
    return f"h{min(_DEEPEST_HEADING, int(tag[1:]) + _HEADING_SHIFT)}"


def _is_web_link(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in ("http", "https", "mailto")
    except ValueError:
        return False


def _parser(breaks: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": breaks}, renderer_cls=_Renderer)
    parser.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    parser.validateLink = _is_web_link
    return parser


_OF_MODELS, _OF_OWNERS = _parser(breaks=True), _parser(breaks=False)


@lru_cache(maxsize=4096)
def render(text: str) -> Markup:
    """A model's text as safe HTML; its line breaks are kept, as they are meant for reading."""
    return _rendered(text, _OF_MODELS)


@lru_cache(maxsize=64)
def render_guide(text: str) -> Markup:
    """The owner's Markdown as safe HTML, lines joined to paragraphs."""
    return _rendered(text, _OF_OWNERS)


def _rendered(text: str, parser: MarkdownIt) -> Markup:
    if len(text) > MAX_RENDERED:
        return Markup('<pre class="plain">\n{}</pre>').format(text)
    return Markup(parser.render(text))  # html is off and links are checked


def excerpt(text: str, characters: int = 160) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: characters * 2].split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """A prompt as one text, with role names if it has several turns."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
