// A zip of files as they are (stored): how a DICOM folder is sent.

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** A blob of `[{ name, file }]`; under 4 GB and 65,535 files, as the plain format has it (PKWARE APPNOTE 4.3). */
export async function zipped(entries) {
  if (entries.length > 65535) throw new Error(`${entries.length} files are more than one upload takes; accepted: 65535`);
  const pieces = [];
  const directory = [];
  let offset = 0;
  for (const { name, file } of entries) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const facts = { crc: crc32(bytes), size: bytes.length, path: new TextEncoder().encode(name), offset };
    const head = localHeader(facts);
    pieces.push(head, bytes);
    directory.push(centralHeader(facts));
    offset += head.length + bytes.length;
    if (offset > 0xfffffff0) throw new Error("The folder holds more than 4 GB; send one series at a time");
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  return new Blob([...pieces, ...directory, endRecord(entries.length, size, offset)]);
}

function record(length, fields, path = new Uint8Array()) {
  const bytes = new Uint8Array(length + path.length);
  const view = new DataView(bytes.buffer);
  for (const [at, size, value] of fields) size === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true);
  bytes.set(path, length);
  return bytes;
}

const UTF8 = 0x0800;
const DAY_ONE = 0x21; // 1 January 1980: the same folder gives the same bytes

function localHeader({ crc, size, path }) {
  const fields = [[0, 4, 0x04034b50], [4, 2, 20], [6, 2, UTF8], [12, 2, DAY_ONE], [14, 4, crc], [18, 4, size], [22, 4, size], [26, 2, path.length]];
  return record(30, fields, path);
}

function centralHeader({ crc, size, path, offset }) {
  const sums = [[16, 4, crc], [20, 4, size], [24, 4, size], [28, 2, path.length], [42, 4, offset]];
  return record(46, [[0, 4, 0x02014b50], [4, 2, 20], [6, 2, 20], [8, 2, UTF8], [14, 2, DAY_ONE], ...sums], path);
}

function endRecord(count, size, offset) {
  return record(22, [[0, 4, 0x06054b50], [8, 2, count], [10, 2, count], [12, 4, size], [16, 4, offset]]);
}
