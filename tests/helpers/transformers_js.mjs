// Answers of transformers.js for the folders that `twinlens onnx` wrote, as JSON on standard output.
//     node transformers_js.mjs FOLDER IMAGE.png TEXT...       in a folder where npm has installed the package
import path from 'node:path';
import * as tjs from '@huggingface/transformers';

const [folder, image, ...texts] = process.argv.slice(2);
tjs.env.allowRemoteModels = false;
tjs.env.localModelPath = path.dirname(folder) + path.sep;
tjs.env.useFSCache = false;
const name = path.basename(folder);

const config = await tjs.AutoConfig.from_pretrained(name);
const sigmoid = config.model_type === 'siglip';
const tokenizer = await tjs.AutoTokenizer.from_pretrained(name);
const processor = await tjs.AutoProcessor.from_pretrained(name);
const padding = sigmoid ? 'max_length' : true;
const picture = await tjs.RawImage.read(image);
const text_inputs = tokenizer(texts, { padding, truncation: true });
const { pixel_values } = await processor(picture);

const list = (tensor) => tensor.tolist().map((row) => (Array.isArray(row) ? row.map(Number) : Number(row)));
const answers = { input_ids: list(text_inputs.input_ids), pixel_values: Array.from(pixel_values.data) };

const both = await (sigmoid ? tjs.SiglipModel : tjs.CLIPModel).from_pretrained(name);
const outputs = await both({ ...text_inputs, pixel_values });
for (const output of ['logits_per_image', 'logits_per_text', 'text_embeds', 'image_embeds']) {
    answers[output] = list(outputs[output]);
}

const vision = await (sigmoid ? tjs.SiglipVisionModel : tjs.CLIPVisionModelWithProjection).from_pretrained(name);
const of_image = await vision({ pixel_values });
answers.vision = { image_embeds: list(of_image.image_embeds), pooler_output: list(of_image.pooler_output) };

const text = await (sigmoid ? tjs.SiglipTextModel : tjs.CLIPTextModelWithProjection).from_pretrained(name);
const of_text = await text(text_inputs);
answers.text = { text_embeds: list(of_text.text_embeds), pooler_output: list(of_text.pooler_output) };

const unpadded = [];
for (const each of texts) unpadded.push(list((await text(tokenizer(each))).text_embeds)[0]);
answers.unpadded_text_embeds = unpadded;

const classify = await tjs.pipeline('zero-shot-image-classification', name);
answers.pipeline = await classify(picture, texts, { hypothesis_template: '{}' });
console.log(JSON.stringify(answers));
