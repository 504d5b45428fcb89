// The clients for Node, one case each: `node clients.mjs CASE URL [KEY]` prints what they gave as JSON.
import OpenAI, { toFile } from 'openai';
import { generateImage } from 'ai';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { DallEAPIWrapper } from '@langchain/openai';
import { EventSource } from 'eventsource';
import * as modelfusion from 'modelfusion';
import sdwebui from 'node-sd-webui';
import stableDiffusionApi from 'stable-diffusion-api';

globalThis.AI_SDK_LOG_WARNINGS = false;
const [name, url, key] = process.argv.slice(2);
const apiKey = key ?? 'not needed';
const baseURL = `${url}/v1`;
const headers = key ? { Authorization: `Bearer ${key}` } : {};
const small = { prompt: 'a lake', size: '64x64' };
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const png = async () =>
  Buffer.from((await client.images.generate({ model: 'demo', ...small })).data[0].b64_json, 'base64');
const raised = async (call) => {
  try {
    await call();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, message: error.message };
  }
};

const cases = {
  async openai_models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    return { found, one: (await client.models.retrieve('demo')).id };
  },
  async openai_generate() {
    const made = await client.images.generate({ model: 'gpt-image-1', ...small, n: 2, quality: 'low' });
    return { images: made.data.map((each) => each.b64_json), size: made.size, usage: made.usage };
  },
  async openai_url() {
    const made = await client.images.generate({ model: 'demo', ...small, response_format: 'url' });
    const answer = await fetch(made.data[0].url);
    return { status: answer.status, kind: answer.headers.get('content-type') };
  },
  async openai_edit() {
    const file = await toFile(await png(), 'photo.png', { type: 'image/png' });
    const one = await client.images.edit({ model: 'demo', image: file, prompt: 'in ink', n: 1 });
    const two = await client.images.edit({ model: 'demo', image: [file, file], mask: file, prompt: 'in ink' });
    return { images: [one, two].map((each) => each.data[0].b64_json), warnings: one.warnings };
  },
  async openai_stream() {
    const kinds = [];
    const stream = await client.images.generate({ model: 'demo', ...small, stream: true, partial_images: 2 });
    for await (const event of stream) kinds.push(event.type);
    return kinds;
  },
  async openai_errors() {
    return {
      model: await raised(() => client.images.generate({ ...small, model: 'nope' })),
      size: await raised(() => client.images.generate({ ...small, size: '9x9' })),
      key: await raised(() => new OpenAI({ baseURL, apiKey: 'wrong, and long enough' }).images.generate(small)),
    };
  },
  async openai_abort() {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 1000);
    const asked = { model: 'demo', prompt: 'a lake', size: '512x512', steps: 200 };
    return raised(() => client.images.generate(asked, { signal: stop.signal }));
  },
  async ai_compatible() {
    const provider = createOpenAICompatible({ name: 'mflux', baseURL, apiKey });
    const made = await generateImage({ model: provider.imageModel('demo'), ...small, n: 2 });
    return { images: made.images.map((each) => each.base64), warnings: made.warnings };
  },
  async ai_compatible_edit() {
    const provider = createOpenAICompatible({ name: 'mflux', baseURL, apiKey });
    const prompt = { text: 'in ink', images: [await png()] };
    const made = await generateImage({ model: provider.imageModel('demo'), prompt });
    return { images: made.images.map((each) => each.base64) };
  },
  async ai_openai() {
    const provider = createOpenAI({ baseURL, apiKey });
    const made = [];
    for (const model of ['dall-e-3', 'gpt-image-1', 'demo']) {
      made.push((await generateImage({ model: provider.image(model), ...small })).image.base64);
    }
    return { images: made };
  },
  async ai_error() {
    const provider = createOpenAICompatible({ name: 'mflux', baseURL, apiKey });
    return raised(() => generateImage({ model: provider.imageModel('nope'), ...small, maxRetries: 0 }));
  },
  async langchain() {
    const asked = { model: 'dall-e-3', apiKey, baseUrl: baseURL, size: '64x64', n: 1 };
    const plain = await new DallEAPIWrapper({ ...asked, dallEResponseFormat: 'b64_json' }).invoke('a lake');
    const link = await new DallEAPIWrapper(asked).invoke('a lake');
    return { images: [plain], status: (await fetch(link)).status };
  },
  async modelfusion() {
    const at = (path) => ({ baseUrl: { protocol: 'http', host: '127.0.0.1', port: new URL(url).port, path }, headers });
    const made = [];
    const a1111 = new modelfusion.Automatic1111ApiConfiguration(at('/sdapi/v1'));
    const asked = { api: a1111, model: 'demo', steps: 2, sampler: 'Euler a', width: 64, height: 64 };
    const prompt = 'a lake';
    const model = modelfusion.automatic1111.ImageGenerator(asked).withTextPrompt();
    made.push(await modelfusion.generateImage({ model, prompt }));
    const api = new modelfusion.OpenAIApiConfiguration({ ...at('/v1'), apiKey });
    const dallE = modelfusion.openai.ImageGenerator({ api, model: 'dall-e-2', size: '64x64' });
    made.push(await modelfusion.generateImage({ model: dallE, prompt }));
    return { images: made.map((each) => Buffer.from(each).toString('base64')) };
  },
  async stable_diffusion_api() {
    const Api = stableDiffusionApi.default ?? stableDiffusionApi;
    const api = new Api({ host: '127.0.0.1', port: new URL(url).port, protocol: 'http', defaultStepCount: 2 });
    if (key) api.setAuth('user', key);
    // Its setModel reads a name that A1111's models do not have.
    await api.setOptions({ sd_model_checkpoint: 'demo' });
    await api.waitForReady(0.1);
    const made = await api.txt2img({ prompt: 'a lake', width: 64, height: 64, batch_size: 2 });
    const given = { init_images: [made.image], mask_image: made.images[1], prompt: 'in ink', width: 64, height: 64 };
    const edited = await api.img2img(given);
    const larger = await api.extraSingle({ image: made.image, upscaling_resize: 2, upscaler_1: 'Lanczos' });
    const base64 = async (each) => (await each.png().toBuffer()).toString('base64');
    return {
      images: await Promise.all([...made.images, edited.image].map(base64)),
      larger: (await larger.image.metadata()).width,
      model: await api.getCurrentModel(),
      told: (await api.pngInfo(made.image)).info,
    };
  },
  async node_sd_webui() {
    // It has no option for a key.
    const api = sdwebui({ apiUrl: url });
    const made = await api.txt2img({ prompt: 'a lake', width: 64, height: 64, steps: 2, batchSize: 2, seed: 7 });
    const edited = await api.img2img({ imageData: [made.images[0]], prompt: 'in ink', width: 64, height: 64 });
    return { images: [...made.images, ...edited.images], told: await api.pngInfo({ imageData: made.images[0] }) };
  },
  async eventsource() {
    const asked = { prompt: 'a lake', width: 64, height: 64, steps: 2 };
    const job = await (
      await fetch(`${url}/api/v1/generate`, { method: 'POST', headers, body: JSON.stringify(asked) })
    ).json();
    const source = new EventSource(`${url}/api/v1/jobs/${job.job_id}/stream?images=url`, {
      fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
    });
    const seen = [];
    return new Promise((resolve) => {
      let opened = 0;
      source.addEventListener('open', () => opened++);
      for (const kind of ['progress', 'complete', 'failed']) {
        source.addEventListener(kind, (event) => {
          seen.push(kind);
          // The server ends a finished stream for good when an EventSource that is left open comes back.
          if (kind === 'complete') {
            const data = JSON.parse(event.data);
            source.addEventListener('error', () => {
              if (source.readyState === EventSource.CLOSED) resolve({ seen, opened, images: data.result.images.length });
            });
          }
        });
      }
    });
  },
};

console.log(JSON.stringify(await cases[name]()));
process.exit(0);
