"""The reference of the API as one page, made from its OpenAPI description; nothing is fetched for it."""

from collections.abc import Iterator
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SphereCF: API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css">
</head><body><header><p class="brand"><img src="/icon.svg" alt="" width="28" height="28"> SphereCF</p>
<a href="/">To the photos</a></header><main class="api"><h1>API</h1><p class="lead">{about}</p>
<p>Every address but <code>/api/health</code> wants the header
<code>Authorization: Bearer TOKEN</code>. The same for programs:
<a href="/api/openapi.json">OpenAPI</a>.</p>{body}</main></body></html>"""


def docs_page(api: dict[str, Any]) -> str:
    """HTML of every operation: its form, its answer, its errors, and a command to try.

    Example:
        >>> page = docs_page({"info": {"description": "Try."}, "paths": {}})
        >>> "Try." in page, "<script" in page
        (True, False)
    """
    operations = [
        _operation(path, verb, one, api)
        for path, verbs in api["paths"].items()
        for verb, one in verbs.items()
    ]
    return _PAGE.format(about=_text(api["info"]["description"]), body="".join(operations))


def _operation(path: str, verb: str, one: dict[str, Any], api: dict[str, Any]) -> str:
    head = f'<h2><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code></h2>'
    content = one.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})
    form = content.get("schema", {})
    answer = one["responses"]["200"]["content"]["application/json"]["schema"]
    pieces = [head, *(f"<p>{_text(part)}</p>" for part in one.get("description", "").split("\n\n"))]
    if form:
        pieces += ["<h3>Form</h3>", _table(form, api)]
    pieces += [
        "<h3>Answer</h3>",
        _table(_resolved(answer, api), api),
        "<h3>Try</h3>",
        _curl(path, verb, form),
    ]
    errors = [
        f"{status}: {_text(said['description'])}"
        for status, said in one["responses"].items()
        if status != "200"
    ]
    pieces.append(f'<p class="note">Errors. {" ".join(errors)}</p>' if errors else "")
    return f"<article>{''.join(pieces)}</article>"


def _curl(path: str, verb: str, form: dict[str, Any]) -> str:
    words = ['curl -H "Authorization: Bearer $TOKEN"', "-X DELETE" if verb == "delete" else ""]
    required = form.get("required", [])
    for name, schema in form.get("properties", {}).items():
        if "contentMediaType" in str(schema):
            words.append(f"-F {name}=@{name.removesuffix('s')}.jpg")
        elif name in required or name == "consent":
            words.append(f"-F {name}={'true' if schema.get('type') == 'boolean' else 'Ada'}")
    words.append(f"$URL{path.replace('{identity}', 'Ada')}")
    return f"<pre><code>{escape(' '.join(filter(None, words)))}</code></pre>"


def _table(schema: dict[str, Any], api: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{_text(text)}</td></tr>"
        for name, kind, text in _rows(schema, api, "")
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _rows(schema: dict[str, Any], api: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    for name, one in schema.get("properties", {}).items():
        inner = _resolved(one.get("items", one), api)
        yield above + name, _kind(one, api), one.get("description", inner.get("description", ""))
        if "properties" in inner:
            dots = f"{above}{name}[]." if "items" in one else f"{above}{name}."
            yield from _rows(inner, api, dots)


def _kind(one: dict[str, Any], api: dict[str, Any]) -> str:
    if "anyOf" in one:
        return " or ".join(_kind(each, api) for each in one["anyOf"])
    if "contentMediaType" in one:
        return "file"
    if "enum" in one or "const" in one:
        return " | ".join(map(str, one.get("enum", [one.get("const")])))
    if one.get("type") == "array":
        return "list of " + _kind(one["items"], api) if "items" in one else "list"
    return str(_resolved(one, api).get("type", "any"))


def _resolved(schema: dict[str, Any], api: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return found


def _text(text: str) -> str:
    """Escaped, with `code` marked."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
