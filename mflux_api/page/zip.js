// Several files as one: a zip that only stores, for images are packed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit += 1) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  return value;
});
const UTF8 = 0x800; // The flag of names in UTF-8.

function crc32(data) {
  let crc = -1;
  for (const byte of data) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc;
}

// Pairs of a size in bytes and a value, little-endian.
const record = (...fields) => Uint8Array.from(fields.flatMap(([size, value]) => Array.from({ length: size }, (_, place) => (value >>> (8 * place)) & 255)));

export async function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob, date } of files) {
    const title = new TextEncoder().encode(name);
    const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
    const day = ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    const about = record([2, 20], [2, UTF8], [2, 0], [2, time], [2, day], [4, crc], [4, blob.size], [4, blob.size], [2, title.length], [2, 0]);
    parts.push(record([4, 0x04034b50]), about, title, blob);
    directory.push(record([4, 0x02014b50], [2, 20]), about, record([2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), title);
    offset += 4 + about.length + title.length + blob.size;
  }
  if (offset > 0xffffffff) throw new Error("These are more than 4 GB, which is what a zip holds: select fewer");
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  return new Blob([...parts, ...directory, record([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0])], { type: "application/zip" });
}
