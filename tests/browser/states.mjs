// Stories of what stands in the way: no model, no memory, no engine, no server, no key.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";

export default ({ page, url, key, live, final, sent, generate }) => ({
  async mended() {
    // The size follows the model, until one is set.
    await page.selectOption("#model", "flux2-klein-4b");
    assert.equal(await page.inputValue("#width"), "1024");
    await page.selectOption("#model", "demo");
    assert.equal(await page.inputValue("#width"), "256");
    // A press counts that is the first one after a mistake was mended.
    await page.fill("#prompt", "a red house");
    await page.fill("#num_images", "9");
    await page.click("#go");
    await page.waitForSelector("#num_images-wrong:not(:empty)");
    await page.fill("#num_images", "1");
    const body = sent();
    await page.click("#go");
    assert.equal((await body).num_images, 1);
    await final();
    // All that can be done with an image is within reach on a phone.
    await page.setViewportSize({ width: 390, height: 844 });
    const edges = await page.locator(".actions .action").evaluateAll((all) => all.map((each) => each.getBoundingClientRect().right));
    assert.ok(edges.length >= 6 && edges.every((edge) => edge <= 390), edges.join());
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
  async restart() {
    await generate("a green hill under a moon", 60);
    await page.waitForSelector("img.preview");
    const down = new Promise((done) => { createInterface({ input: process.stdin }).once("line", done); });
    console.log("restart");
    await down;
    await page.waitForSelector('.live:has-text("Reconnecting in")');
    await page.waitForSelector('.banner:has-text("Nothing is lost")');
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
  async suggestion() {
    await page.route(/api\/v1\/jobs\/\w+\?/, async (route) => {
      const job = await (await route.fetch()).json();
      if (job.model === "demo") Object.assign(job, { status: "failed", code: "OOM_ERROR", error: "Insufficient memory. Try using a quantized model or low_ram mode", details: { suggestion: "Use demo-base or set low_ram=true" }, result: null });
      return route.fulfill({ json: job });
    });
    await generate("a lake", 200);
    await page.waitForSelector('h2:has-text("Not enough memory")');
    const asked = sent();
    await page.click('button:has-text("Use demo-base")');
    const { model, prompt } = await asked;
    assert.deepEqual([model, prompt], ["demo-base", "a lake"]);
    await page.waitForSelector(".tile progress");
    await fetch(`${url}/api/v1/jobs/cancel`, { method: "POST", body: '{"all": true}' });
  },
  async engine() {
    const engines = [{ id: "0", status: "starting", problem: "Segmentation fault", device: "A card", backend: "cuda", models: [], loading: null, memory_gb: 0 }];
    await page.route("**/api/v1/system", (route) => route.fulfill({ json: { engines, system_memory_gb: { total: 16 }, problem: null } }));
    const says = async (status, words) => {
      engines[0].status = status;
      await page.reload();
      await page.waitForSelector(`.banner:has-text("${words}")`);
      await page.waitForSelector(`.engine:has-text("${status}")`);
    };
    await says("starting", "crashed and starts again: Segmentation fault");
    await says("degraded", "keeps crashing");
    await says("failed", "tried again after a while");
    Object.assign(engines[0], { status: "ready", problem: null });
    await page.reload();
    await live();
    await page.waitForSelector(".banner", { state: "hidden" });
  },
});
