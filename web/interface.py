"""The page: what it looks like, and which of the answers each button asks for. Made of Gradio."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..index.page import to_html
from ..inference.zero_shot import DEFAULT_TEMPLATE
from .answers import Answers, FilePath

_STYLE = """<style>
.twinlens-bars { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem; }
.twinlens-bars li { display: grid; grid-template-columns: 1fr auto; gap: .25rem 1rem; }
.twinlens-bars span, .twinlens-table th { overflow-wrap: anywhere; }
.twinlens-bars b, .twinlens-table td { font-variant-numeric: tabular-nums; }
.twinlens-bars i { grid-column: 1 / -1; height: .5rem; min-width: 2px; border-radius: 2px; background: #2a78b5; }
.twinlens-table { overflow-x: auto; }
.twinlens-table table { border-spacing: 4px; border-collapse: separate; }
.twinlens-table th { padding: .25rem .5rem; max-width: 14rem; font-weight: 500; }
.twinlens-table td[style] { padding: .5rem .75rem; min-width: 6rem; text-align: center; border-radius: 4px;
  background: color-mix(in srgb, #2a9df4 var(--tint), transparent); }
.twinlens-table img { max-width: 6rem; max-height: 6rem; width: auto; height: auto; border-radius: 4px; }
.twinlens-table small { display: block; }
.twinlens-note { padding-top: .75rem; font-size: .875rem; opacity: .75; }
.twinlens-problem { padding: .75rem 1rem; border-left: 4px solid #c62828; border-radius: 4px;
  background: color-mix(in srgb, #c62828 12%, transparent); overflow-wrap: anywhere; }
h1.twinlens { font-size: 1.5rem; font-weight: 700; }
</style>"""
_KEPT_SECONDS = 3600  # uploaded images and thumbnails


def import_gradio() -> Any:
    """Return gradio. Raises ImportError that names the extra."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            f"The page needs gradio ({error}): pip install '.[app]' in the checkout of twinlens."
        ) from error
    return gradio


def build_app(model: FilePath, index: FilePath | None = None, *, tokenizer: FilePath | None = None) -> Any:
    """Return the page of a model as `gradio.Blocks`, of which `launch()` starts a server; nothing is shared by itself.

    `model` is a Hub id, a folder or an official file, `tokenizer` for one without a vocabulary. With an index, a folder
    that `twinlens embed` wrote with the weights of the model, there is also a search. Raises ImportError without
    gradio, and ValueError or OSError for a model or an index that cannot be read, or that do not belong together.
    """
    gr = import_gradio()
    answers = Answers.open(model, index, tokenizer)
    with gr.Blocks(title="twinlens", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.HTML(
            f"{_STYLE}<h1 class='twinlens'>twinlens</h1><p class='twinlens-note'>{to_html(str(model))}</p>",
            apply_default_css=False,
        )
        if answers.searcher is not None:
            with gr.Tab("Search"):
                _add_search(gr, answers)
        with gr.Tab("Classify"):
            _add_classification(gr, answers)
        with gr.Tab("Compare"):
            _add_comparison(gr, answers)
    return page


def _add_classification(gr: Any, answers: Answers) -> None:
    with gr.Row():
        with gr.Column():
            image = _image_input(gr)
            labels = gr.Textbox(label="Labels, one on each line", lines=4, placeholder="a cat\na dog")
            template = gr.Textbox(DEFAULT_TEMPLATE, label="The sentence around a label, which {} stands for")
            button = gr.Button("Classify", variant="primary")
        with gr.Column():
            shown = _answer_space(gr)
    _ask(button.click, answers.classify, [image, labels, template], shown)


def _add_comparison(gr: Any, answers: Answers) -> None:
    with gr.Row():
        images = gr.Gallery(
            label="Images", type="filepath", file_types=["image"], columns=4, height=240, interactive=True
        )
        with gr.Column():
            texts = gr.Textbox(label="Texts, one on each line", lines=5, placeholder="a red bicycle\na boat at night")
            button = gr.Button("Compare", variant="primary")
    shown = _answer_space(gr)

    def compare(pairs: list[tuple[str, str | None]] | None, texts: str) -> str:
        return answers.compare([path for path, _ in pairs or ()], texts)

    _ask(button.click, compare, [images, texts], shown)


def _add_search(gr: Any, answers: Answers) -> None:
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label="Find by words", placeholder="a red bicycle")
            by_text = gr.Button("Search", variant="primary")
            top = gr.Slider(1, 100, 20, step=1, label="Number of images")
        with gr.Column():
            image = _image_input(gr, "Or find images like this one", height=180)
            by_image = gr.Button("Search by image")
    problem = gr.HTML(apply_default_css=False)
    found = gr.Gallery(
        show_label=False, columns=5, object_fit="contain", height="auto", format="jpeg", interactive=False
    )
    _ask(by_text.click, answers.search_text, [text, top], (problem, found))
    _ask(text.submit, answers.search_text, [text, top], (problem, found))
    _ask(by_image.click, answers.search_image, [image, top], (problem, found))


def _answer_space(gr: Any) -> tuple[Any, Any]:
    """Add the place of a problem, and below it that of an answer in HTML."""
    return gr.HTML(apply_default_css=False), gr.HTML(apply_default_css=False)


def _image_input(gr: Any, label: str = "Image", height: int = 280) -> Any:
    image = gr.Image(label=label, type="filepath", height=height, sources=["upload", "clipboard"])
    # Gradio would open the file itself, and answer "Error" for one that it cannot open.
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _ask(event: Any, function: Callable[..., Any], inputs: list[Any], shown: tuple[Any, Any]) -> None:
    """Show what the function returns, or else the message of what it raises; one question at a time asks the model."""

    @wraps(function)
    def answer(*values: Any) -> tuple[str, Any]:
        try:
            return "", function(*values)
        except (ValueError, OSError) as error:
            return f'<p class="twinlens-problem" role="alert">{to_html(str(error))}</p>', None

    event(answer, inputs, [*shown], concurrency_id="model", concurrency_limit=1, api_name=False)
