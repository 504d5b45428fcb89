// Stories of how the page looks: widths, themes, readers of the screen, figures.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const PIXEL = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");

export default ({ page, url, folder, live, final, action, generate }) => {
  // Axe finds what a reader of the screen, or an eye, would miss.
  async function loadAxe() {
    await page.evaluate(readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
    return async (what) => {
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map((each) => [each.id, each.nodes[0].html]), [], what);
    };
  }

  return {
    async accessible() {
      const check = await loadAxe();
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
      await page.keyboard.press("Escape");
      await action("Mask");
      await page.waitForSelector(".board");
      await check("mask");
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
    async sheet() {
      const check = await loadAxe();
      await page.emulateMedia({ reducedMotion: "reduce" });
      await page.setViewportSize({ width: 390, height: 844 });
      assert.ok(!(await page.isVisible("#prompt")), "the image comes first");
      await page.click("#opener");
      await page.waitForSelector("#sheet[open] #prompt:focus");
      await check("sheet");
      for (let step = 0; step < 30; step += 1) {
        await page.keyboard.press("Tab");
        assert.ok(await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest("#sheet")), "the focus stays in the sheet");
      }
      await page.screenshot({ path: `${folder}/sheet.png` });
      await page.keyboard.press("Escape");
      await page.waitForSelector("#opener:focus");
      await page.click("#opener");
      await generate("a red house", 999);
      await page.waitForSelector("#steps-wrong:not(:empty)");
      await page.fill("#steps", "4");
      await page.keyboard.press("Control+Enter");
      await final();
      assert.ok(!(await page.isVisible("#prompt")), "the sheet leaves the image");
      await action("Edit");
      await page.waitForSelector("#sheet[open] .reference");
      await page.setViewportSize({ width: 1280, height: 800 });
      await page.waitForSelector(".room > #compose #prompt");
    },
    async shift() {
      await page.addInitScript(() => {
        window.shifts = [];
        new PerformanceObserver((list) => window.shifts.push(...list.getEntries())).observe({ type: "layout-shift", buffered: true });
      });
      for (const width of [360, 1024, 2560]) {
        await page.setViewportSize({ width, height: width > 2000 ? 1440 : 768 });
        await page.reload();
        await live();
        if (width < 720) await page.click("#opener");
        await page.fill("#num_images", width < 720 ? "2" : "1");
        await generate("a red house by a lake");
        await page.waitForSelector("img.preview");
        await final();
        await page.waitForTimeout(500);
        // As browsers report it: what moves within half a second of a key or a press was asked for.
        const moved = await page.evaluate(() => window.shifts.map(({ value, hadRecentInput, sources }) => ({ value, hadRecentInput, sources: sources.map(({ node }) => node?.id || node?.className || node?.nodeName) })));
        const sum = (entries) => entries.reduce((all, { value }) => all + value, 0).toFixed(4);
        const own = moved.filter((each) => !each.hadRecentInput);
        console.log(`layout shift at ${width} px: ${sum(own)}, ${sum(moved)} with what a press moved`);
        assert.ok(sum(own) < 0.01, JSON.stringify(moved));
      }
    },
    async first() {
      const loaded = [];
      const fresh = await (await page.context().browser().newContext()).newPage();
      fresh.on("response", (response) => { if (/\/$|\/page\//.test(response.url()) && response.request().resourceType() !== "fetch") loaded.push(response.body()); });
      await fresh.goto(url);
      await fresh.waitForSelector(".live[data-state=live]");
      const files = await Promise.all(loaded);
      const sum = files.reduce((all, body) => all + body.length, 0);
      const shown = await fresh.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
      console.log(`first load: ${sum} bytes in ${files.length} files, first contentful paint after ${Math.round(shown)} ms`);
      assert.ok(files.length > 10 && sum <= 100_000);
    },
    async docs() {
      await page.click('a:has-text("API")');
      const operation = page.locator('.opblock:has([data-path="/api/v1/health"])');
      await operation.locator(".opblock-summary-control").click();
      await operation.locator('button:has-text("Try it out")').click();
      await operation.locator('button:has-text("Execute")').click();
      await operation.locator('.live-responses-table:has-text("healthy")').waitFor();
      assert.ok(await page.locator(".opblock").count() > 50);
    },
  };
};
