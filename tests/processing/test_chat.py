"""Chat templates against transformers' renderer."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
import transformers
from packaging.version import Version
from transformers.utils.chat_template_utils import render_jinja_template

from edgemm.bundle.spec import ChatSpec
from edgemm.errors import BundleError, InputError
from edgemm.processing.chat import render, user_message

CHATML = (
    "{%- for message in messages %}\n    {%- if loop.first and message.role != 'system' %}\n"
    "        {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}\n    {%- endif %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
    "    {%- if message.content is string %}{{ message.content }}\n    {%- else %}\n"
    "        {%- for part in message.content %}\n"
    "            {%- if part.type == 'image' or 'image' in part %}{{ '<image>' }}\n"
    "            {%- elif 'text' in part %}{{ part.text }}{% endif %}\n        {%- endfor %}\n"
    "    {%- endif %}{{ '<|im_end|>\\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
EACH = "{% for m in messages %}"
TEMPLATES = {
    "chatml": CHATML,
    "blocks": f"  {EACH}\n  {{% if m.role %}}\n{{{{ m.role }}}}\n  {{% endif %}}\n{{% endfor %}}\n",
    "loop controls": EACH + "{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "tojson": "{{ messages | tojson }}|{{ '<é&>' | tojson }}",
    "tojson options": "{{ messages | tojson(indent=2, sort_keys=true) }}",
    "specials": "{{ bos_token }}{{ eos_token }}{{ absent }}",
    "no tools": "{{ tools is none }}{{ documents is none }}",
    "generation": EACH + "{% generation %}{{ m.role }}{% endgeneration %};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}" + EACH + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "filters": "{{ messages[0].role | capitalize | trim }}{{ messages | length }}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}" + EACH + "{{ f(m.role) }}{% endfor %}",
    "prompt": "{% if add_generation_prompt %}A{% else %}B{% endif %}{{ enable_thinking }}",
    "dict": "{{ dict(a=1).a }}{{ dict(b=2) | tojson }}",
}
TURNS = ("user", "assistant") * 3
CONVERSATIONS = {
    "text": [{"role": "user", "content": "Hi <é> 日本\n"}],
    "system": [{"role": "system", "content": "Be"}, {"role": "user", "content": ""}],
    "image": [user_message("What is it?", 1)],
    "images": [user_message("Compare.", 3), {"role": "assistant", "content": "One."}],
    "payload": [{"role": "user", "content": [{"type": "image", "image": np.zeros(3)}]}],
    "turns": [{"role": r, "content": [{"type": "text", "text": r * 3}]} for r in TURNS],
}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_equals_transformers(template, conversation, prompt):
    messages, source = CONVERSATIONS[conversation], TEMPLATES[template]
    variables = {**SPECIALS, "enable_thinking": False}
    try:
        [expected], _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=prompt, **variables
        )
    except TypeError:
        if Version(transformers.__version__) >= Version("5.23"):
            raise
        pytest.skip("transformers before 5.23 writes no picture into JSON")
    spec = ChatSpec(template=source, special_tokens=SPECIALS)
    made = render(messages, spec, add_generation_prompt=prompt, enable_thinking=False)
    assert made == expected


def test_pictures_come_before_the_question():
    text = render([user_message("Why?", 2)], ChatSpec(template=CHATML))
    assert "<|im_start|>user\n<image><image>Why?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_knows_the_date():
    spec = ChatSpec(template="{{ strftime_now('%Y') }}")
    assert render([user_message("x")], spec) == str(datetime.now().year)


def test_a_template_may_refuse_messages():
    spec = ChatSpec(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        render([user_message("x")], spec)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"role": "user"}], [{"content": "x"}], [None]], ids=repr)
def test_malformed_messages(messages):
    with pytest.raises(InputError):
        render(messages, ChatSpec(template=CHATML))


@pytest.mark.parametrize("template", ["{% for x in", "{{ 1 | nofilter }}", "{% nothing %}"])
def test_broken_templates(template):
    with pytest.raises(BundleError, match="broken"):
        render([user_message("x")], ChatSpec(template=template))


def test_the_sandbox_hides_python():
    spec = ChatSpec(template="<{{ raise_exception.__globals__ }}{{ dict.__subclasses__ }}>")
    assert render([user_message("x")], spec) == "<>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ range(10000000) | list | length }}",
        "{{ messages[0].nothing.nothing }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_templates_end_in_an_error(template):
    with pytest.raises((BundleError, InputError)):
        render([user_message("x")], ChatSpec(template=template))
