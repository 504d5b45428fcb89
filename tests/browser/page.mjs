// Stories of the page, each told in a fresh Chromium: node page.mjs STORY URL CHROMIUM FOLDER KEY
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [story, url, executablePath, folder, key] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
// The profile is a temporary folder of Playwright's own.
const browser = await chromium.launch({ executablePath, args });
// Axe is run by evaluation, which the page's own policy refuses, as it should.
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, bypassCSP: story === "accessible" });
const page = await context.newPage();
page.setDefaultTimeout(30000);
const problems = [];
page.on("pageerror", (error) => problems.push(error.message));
page.on("console", (message) => { if (/Content Security|TrustedHTML/.test(message.text())) problems.push(message.text()); });

const live = () => page.waitForSelector(".live[data-state=live]");
const final = () => page.waitForSelector("img.final");
const action = (name) => page.click(`.actions .action:has-text("${name}")`);

async function generate(prompt, steps = 4) {
  await page.selectOption("#model", "demo");
  await page.click('.chip:has-text("1:1")');
  await page.fill("#steps", String(steps));
  await page.fill("#prompt", prompt);
  await page.keyboard.press("Control+Enter");
}

const PIXEL = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");

const stories = {
  async generate() {
    await generate("a red house by a lake");
    await page.waitForSelector("img.preview");
    const before = await page.locator(".frame").boundingBox();
    assert.match(await page.textContent(".line"), /step \d of 4|Decoding|Saving/);
    await final();
    assert.deepEqual(await page.locator(".frame").boundingBox(), before, "the final image has the place of the previews");
    await page.fill("#prompt", "");
    await action("Same again");
    assert.equal(await page.inputValue("#prompt"), "a red house by a lake");
    await page.fill("#steps", "999");
    await page.keyboard.press("Control+Enter");
    await page.waitForFunction(() => /steps/.test(document.querySelector("#steps-wrong")?.textContent ?? ""));
    await page.fill("[type=search]", "no such prompt");
    await page.waitForFunction(() => /Nothing/.test(document.querySelector(".end").textContent));
    await page.fill("[type=search]", "red house");
    await page.waitForSelector(".tile img");
  },
  async cancel() {
    await generate("a green hill", 200);
    await page.waitForSelector("img.preview");
    await page.click('.line button:has-text("Cancel")');
    await page.waitForSelector('.below:has-text("Cancelled.")');
    await page.waitForSelector(".tile .cancelled");
  },
  async mask() {
    await generate("a sailing boat");
    await final();
    await action("Mask");
    const box = await page.locator("canvas.brushed").boundingBox();
    await page.mouse.move(box.x + box.width * 0.2, box.y + box.height * 0.2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.6, box.y + box.height * 0.5, { steps: 6 });
    await page.mouse.up();
    const knob = await page.locator(".knob.right").boundingBox();
    await page.mouse.move(knob.x + 22, knob.y + 22);
    await page.mouse.down();
    await page.mouse.move(knob.x + 22 + box.width / 4, knob.y + 22, { steps: 4 });
    await page.mouse.up();
    await page.focus(".knob.top");
    await page.keyboard.press("ArrowUp");
    await page.fill('.tool:has-text("Feather") input', "2");
    await page.click('button:has-text("Use mask")');
    await page.setInputFiles("#files", { name: "reference.png", mimeType: "image/png", buffer: await page.screenshot({ clip: { x: 0, y: 0, width: 64, height: 64 } }) });
    await page.waitForSelector(".reference:nth-child(2)");
    await page.fill("#prompt", "a moon");
    const sent = page.waitForRequest((request) => request.url().endsWith("/api/v1/generate"));
    await page.keyboard.press("Control+Enter");
    const body = (await sent).postDataJSON();
    assert.ok(body.mask.length > 100 && body.init_images.length === 2, "a mask is of the first image, others are references");
    assert.deepEqual([body.extend, body.mask_blur, body.width], [{ left: 0, top: 16, right: 64, bottom: 0 }, 2, undefined]);
    await page.waitForSelector("img.preview");
    await final();
    const { across, down, kept, anew } = await page.evaluate(async ([before, after]) => {
      const pixels = async (image, where) => {
        const pen = new OffscreenCanvas(1000, 1000).getContext("2d");
        pen.drawImage(image, 0, 0);
        return pen.getImageData(...where).data.join();
      };
      await after.decode();
      return {
        across: after.naturalWidth, down: after.naturalHeight,
        kept: await pixels(before, [150, 200, 60, 50]) === await pixels(after, [150, 216, 60, 50]),
        anew: await pixels(before, [80, 70, 40, 40]) !== await pixels(after, [80, 86, 40, 40]),
      };
    }, await Promise.all([page.$(".reference img"), page.$("img.final")]));
    assert.deepEqual([across, down, kept, anew], [320, 272, true, true], "what is not covered is kept to the pixel");
    await action("Compare");
    await page.waitForSelector("dialog[open]");
  },
  async thousand() {
    const [real] = (await (await fetch(`${url}/api/v1/jobs?limit=1&status=completed`)).json()).jobs;
    const old = Array.from({ length: 1000 }, (_, index) => ({ ...real, id: `0${index}`, prompt: `old image ${index}` }));
    await page.route(/api\/v1\/jobs\?/, (route) => {
      const query = new URL(route.request().url()).searchParams;
      const from = Number(query.get("cursor") ?? 0);
      const to = from + Number(query.get("limit"));
      return route.fulfill({ json: { jobs: old.slice(from, to), next_cursor: to < old.length ? String(to) : null } });
    });
    await page.route(/images\/0|jobs\/0/, (route) => route.fulfill({ body: PIXEL, contentType: "image/png" }));
    await page.reload();
    await live();
    await page.evaluate(() => {
      window.longest = 0;
      new PerformanceObserver((list) => { for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration); }).observe({ type: "longtask" });
    });
    while ((await page.textContent(".end")) !== "That is all.") {
      const count = await page.locator(".tile").count();
      await page.locator(".end").scrollIntoViewIfNeeded();
      await page.waitForFunction((before) => document.querySelectorAll(".tile").length > before || document.querySelector(".end").textContent === "That is all.", count);
    }
    assert.equal(await page.locator(".tile").count(), 1000);
    await generate("one more, above a thousand");
    await page.waitForSelector("img.preview");
    await final();
    await page.waitForSelector(".tile.on");
    assert.equal(await page.locator(".tile").count(), 1001);
    assert.equal(await page.locator(".tile").first().getAttribute("aria-label"), "one more, above a thousand");
    console.log(`longest task with 1,000 images: ${await page.evaluate(() => Math.round(window.longest))} ms`);
  },
  async models() {
    const { models } = await (await fetch(`${url}/api/v1/models`)).json();
    const whole = models.find((each) => each.title === "flux2-klein-4b").size_gb.toFixed(1);
    await page.selectOption("#model", "flux2-klein-4b-4-bit");
    await page.waitForSelector(`button.main:has-text("Download ${whole} GB, then generate")`);
    await page.selectOption("#model", "demo");
    await page.waitForSelector('button.main:text-is("Generate")');
    await page.click('button:has-text("Models")');
    await page.fill('[aria-label="Find a model"]', "demo-base");
    await page.click('[aria-label="Load: demo-base"]');
    await page.waitForSelector('[aria-label="Unload: demo-base"]');
    await page.keyboard.press("Escape");
    await page.waitForSelector("dialog", { state: "hidden" });
  },
  async accessible() {
    const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    await page.evaluate(axe);
    const check = async (what) => {
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map((each) => [each.id, each.nodes[0].html]), [], what);
    };
    await check("empty");
    await generate("a red house");
    await final();
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      for (const width of [360, 1024, 2560]) {
        await page.setViewportSize({ width, height: width > 2000 ? 1440 : 768 });
        await check(`${colorScheme}, ${width} px`);
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `no sideways scroll at ${width}`);
        await page.screenshot({ path: `${folder}/${colorScheme}-${width}.png` });
      }
    }
    await page.click('button:has-text("Models")');
    await check("models");
  },
  async restart() {
    await generate("a green hill under a moon", 60);
    await page.waitForSelector("img.preview");
    const down = new Promise((done) => { createInterface({ input: process.stdin }).once("line", done); });
    console.log("restart");
    await down;
    await page.waitForSelector(".live[data-state=reconnecting]");
    console.log("start");
    await live();
    await final();
  },
  async key() {
    await page.fill("#key", "a wrong key that is long enough");
    await page.click('button:has-text("Enter")');
    await page.waitForSelector(".key .wrong:not(:empty)");
    await page.fill("#key", key);
    await page.click('button:has-text("Enter")');
    await live();
    await page.reload();
    await live();
    assert.ok(!(await page.isVisible("#key")));
  },
};

try {
  await page.goto(url);
  if (story !== "key") await live();
  await stories[story]();
  assert.deepEqual(problems, []);
  await browser.close();
  process.exit(0);
} catch (error) {
  console.log(error.stack);
  await page.screenshot({ path: `${folder}/failed.png` }).catch(() => {});
  await browser.close();
  process.exit(1);
}
