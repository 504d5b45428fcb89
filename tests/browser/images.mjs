// Stories of making images: with words, with a mask, and what is done with many.
import assert from "node:assert/strict";

export default ({ page, folder, final, action, sent, generate }) => ({
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
    await page.waitForSelector('#view h2:has-text("Cancelled")');
    await page.waitForSelector(".tile .cancelled");
  },
  async mask() {
    await generate("a sailing boat");
    await final();
    await action("Mask");
    await page.waitForSelector("#masking[open] #extended:not(:empty)");
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
    const asked = sent();
    await page.keyboard.press("Control+Enter");
    const body = await asked;
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
  async touch() {
    await generate("a green hill");
    await final();
    await action("Mask");
    await page.waitForSelector("#masking[open] #extended:not(:empty)");
    const covered = () => page.evaluate(() => {
      const canvas = document.querySelector("canvas.brushed");
      return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter((value, place) => place % 4 === 3 && value > 127).length;
    });
    const fingers = await page.context().newCDPSession(page);
    const touch = (type, ...points) => fingers.send("Input.dispatchTouchEvent", { type, touchPoints: points.map(([x, y], id) => ({ x, y, id })) });
    const { x, y } = await page.locator("canvas.brushed").boundingBox();
    await touch("touchStart", [x + 60, y + 60]);
    await touch("touchMove", [x + 160, y + 60]);
    const one = await covered();
    assert.ok(one > 0);
    await touch("touchStart", [x + 160, y + 60], [x + 60, y + 200]);
    await touch("touchMove", [x + 160, y + 60], [x + 160, y + 200]);
    await touch("touchEnd");
    assert.equal(await covered(), one, "a second finger does not draw");
    await page.click("#undo");
    assert.equal(await covered(), 0);
    await page.click("#invert");
    await page.click("#use-mask");
    await page.waitForSelector('.tag:text-is("masked")');
    await page.fill("#prompt", "a moon");
    await page.keyboard.press("Control+Enter");
    // The service takes a mask of all: it is read by its brightness then.
    await page.waitForSelector("img.preview");
    await final();
  },
  async zip() {
    for (const prompt of ["a lake", "a house: Häuser / 雪"]) {
      await generate(prompt);
      await page.waitForSelector(`.said:text-is("${prompt}")`);
      await final();
    }
    // By keyboard alone.
    await page.focus("#select");
    await page.keyboard.press("Enter");
    await page.focus(".tile");
    await page.keyboard.press("Space");
    await page.focus("li:nth-child(2) > .tile");
    await page.keyboard.press("Shift+Enter");
    await page.waitForSelector('.picks:has-text("2 selected")');
    const [download] = await Promise.all([page.waitForEvent("download"), page.click('.picks button:has-text("Zip")')]);
    await download.saveAs(`${folder}/images.zip`);
    await page.click('button:has-text("As references")');
    await page.waitForSelector(".reference:nth-child(2)");
    assert.equal(await page.locator("[aria-pressed].tile").count(), 0, "nothing can be selected any more");
  },
});
