"""What the real vLLM makes of chat requests, without an engine: run by vLLM's own Python, JSON in and out.

    .venv-vllm/bin/python -P tests/support/vllm_render.py < requests.json > texts.json

A request is {"template", "special_tokens", "body"} with the body of /v1/chat/completions; a text is null where the
template refuses it. The steps are those of vLLM's `OnlineRenderer.preprocess_chat` and `HfRenderer.render_messages`.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any


def main() -> None:
    requests = json.load(sys.stdin)
    json.dump([_rendered(**request) for request in requests], sys.stdout)


def _rendered(template: str, special_tokens: dict[str, str], body: dict[str, Any]) -> dict[str, str | None]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest

    return {
        kind.__name__: _text(template, special_tokens, kind(**json.loads(json.dumps(body))))
        for kind in (ChatCompletionRequest, TokenizeChatRequest)
    }


def _text(template: str, special_tokens: dict[str, str], request: Any) -> str | None:
    from transformers.utils.chat_template_utils import render_jinja_template
    from vllm.renderers.chat_utils import parse_chat_messages
    from vllm.renderers.hf import _detect_content_format

    # The two fields of its ModelConfig that texts need.
    config = SimpleNamespace(enable_prompt_embeds=False, multimodal_config=None)
    content_format = _detect_content_format(template, default="string")
    conversation, _, _ = parse_chat_messages(request.messages, config, content_format)
    tools = [tool.model_dump() for tool in request.tools] if request.tools else None
    try:
        rendered = render_jinja_template(
            [conversation], tools=tools, chat_template=template, add_generation_prompt=True, **special_tokens
        )
    except Exception:  # a template is a program: any error in it is a refusal
        return None
    texts = rendered[0] if isinstance(rendered, tuple) else rendered
    return texts[0] if isinstance(texts, list) else texts


if __name__ == "__main__":
    main()
