"""The page: what it looks like, and which of the answers each button asks for. Made of Gradio."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..index.page import to_html
from ..inference.zero_shot import DEFAULT_TEMPLATE
from .answers import Answers, FilePath

_STYLE = """<style>
.twinlens-bars { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem; }
.twinlens-bars li { display: grid; grid-template-columns: 1fr auto; gap: .25rem 1rem; margin: 0; }
.twinlens-bars span { overflow-wrap: anywhere; }
.twinlens-bars b, .twinlens-table td { font-variant-numeric: tabular-nums; }
.twinlens-bars i { grid-column: 1 / -1; height: .5rem; min-width: 2px; border-radius: .25rem;
  background: var(--color-accent); }
.twinlens-table { overflow-x: auto; }
.twinlens-table table { border-collapse: separate; border-spacing: 4px; }
.twinlens-table th { padding: .25rem .5rem; max-width: 12rem; overflow-wrap: anywhere; font-weight: 500; }
.twinlens-table td { padding: .5rem .75rem; text-align: center; border-radius: .375rem; }
.twinlens-table td[style] { background: color-mix(in srgb, var(--color-accent) var(--tint), transparent); }
.twinlens-table img { max-width: 6rem; max-height: 6rem; width: auto; height: auto; border-radius: .375rem; }
.twinlens-table small { display: block; }
.twinlens-note { margin-top: .75rem; font-size: .875rem; color: var(--body-text-color-subdued); }
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
    that `twinlens embed` wrote with the weights of the model, there is also a search. Raises ImportError without gradio,
    and ValueError or OSError for a model or an index that cannot be read, or that do not belong together.
    """
    gr = import_gradio()
    answers = Answers.open(model, index, tokenizer)
    with gr.Blocks(title="twinlens", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.HTML(f"{_STYLE}<h1>twinlens</h1><p class='twinlens-note'>{to_html(str(model))}</p>")
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
            template = gr.Textbox(DEFAULT_TEMPLATE, label="The sentence around a label, {}")
            button = gr.Button("Classify", variant="primary")
        answer = gr.HTML(label="Answer", show_label=True, container=True, min_height=120, padding=True)
    _ask(gr, button.click, answers.classify, [image, labels, template], answer)


def _add_comparison(gr: Any, answers: Answers) -> None:
    with gr.Row():
        images = gr.Gallery(
            label="Images", type="filepath", file_types=["image"], columns=4, height=240, interactive=True
        )
        with gr.Column():
            texts = gr.Textbox(label="Texts, one on each line", lines=5, placeholder="a red bicycle\na boat at night")
            button = gr.Button("Compare", variant="primary")
    answer = gr.HTML(label="Answer", show_label=True, container=True, min_height=120, padding=True)

    def compare(pairs: list[tuple[str, str | None]] | None, texts: str) -> str:
        return answers.compare([path for path, _ in pairs or ()], texts)

    _ask(gr, button.click, compare, [images, texts], answer)


def _add_search(gr: Any, answers: Answers) -> None:
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label="Find by words", placeholder="a red bicycle")
            by_text = gr.Button("Search", variant="primary")
            top = gr.Slider(1, 100, 20, step=1, label="Number of images")
        with gr.Column():
            image = _image_input(gr, label="Or find images like this one")
            by_image = gr.Button("Search by image")
    found = gr.Gallery(label="Found", columns=5, object_fit="contain", height="auto", format="jpeg", interactive=False)
    _ask(gr, by_text.click, answers.search_text, [text, top], found)
    _ask(gr, text.submit, answers.search_text, [text, top], found)
    _ask(gr, by_image.click, answers.search_image, [image, top], found)


def _image_input(gr: Any, label: str = "Image") -> Any:
    image = gr.Image(label=label, type="filepath", height=280, sources=["upload", "clipboard"])
    # Gradio would open the file itself, and answer "Error" for one that it cannot open.
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _ask(gr: Any, event: Any, function: Callable[..., Any], inputs: list[Any], output: Any) -> None:
    """Show what the function returns, and what it raises as a message; one question at a time asks the model."""

    @wraps(function)
    def answer(*values: Any) -> Any:
        try:
            return function(*values)
        except (ValueError, OSError) as error:
            raise gr.Error(to_html(str(error)), title="That did not work", print_exception=False) from error

    event(answer, inputs, output, concurrency_id="model", concurrency_limit=1, api_name=False)
