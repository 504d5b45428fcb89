// Stories of the page, each told in a fresh Chromium: node page.mjs STORY URL CHROMIUM FOLDER KEY
import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import images from "./images.mjs";
import screens from "./screens.mjs";
import states from "./states.mjs";

const [story, url, executablePath, folder, key] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
// The profile is a temporary folder of Playwright's own.
const browser = await chromium.launch({ executablePath, args });
// Axe is run by evaluation, which the page's own policy refuses, as it should.
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, bypassCSP: ["accessible", "sheet"].includes(story) });
const page = await context.newPage();
page.setDefaultTimeout(30000);
const problems = [];
page.on("pageerror", (error) => problems.push(error.message));
page.on("console", (message) => { if (/Content Security|TrustedHTML/.test(message.text()) || (story === "docs" && message.type() === "error")) problems.push(message.text()); });

const tools = {
  page, url, folder, key,
  live: () => page.waitForSelector(".live[data-state=live]"),
  final: () => page.waitForSelector("img.final"),
  action: (name) => page.click(`.actions .action:has-text("${name}")`),
  // The body of the next request for images.
  sent: async () => (await page.waitForRequest((request) => request.url().endsWith("/api/v1/generate"))).postDataJSON(),
  async generate(prompt, steps = 4) {
    await page.selectOption("#model", "demo");
    await page.click('.chip:has-text("1:1")');
    await page.fill("#steps", String(steps));
    await page.fill("#prompt", prompt);
    await page.keyboard.press("Control+Enter");
  },
};
const stories = { ...images(tools), ...screens(tools), ...states(tools) };

try {
  await page.goto(url);
  if (story !== "key") await tools.live();
  await stories[story]();
  assert.deepEqual(problems, []);
  await browser.close();
  process.exit(0);
} catch (error) {
  console.log(error.stack, problems);
  await page.screenshot({ path: `${folder}/failed.png` }).catch(() => {});
  await browser.close();
  process.exit(1);
}
