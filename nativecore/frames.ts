// Length-delimited frames of the control stream: varint length, then the bytes.

/** A capture of many tasks is some tens of megabytes; a larger length is not a message but a mistake. */
export const kMaxFrameBytes = 1 << 30;

export function frame(body: Uint8Array): Buffer {
  const prefix: number[] = [];
  let length = body.length;
  while (length > 0x7f) {
    prefix.push((length & 0x7f) | 0x80);
    length >>>= 7;
  }
  prefix.push(length);
  return Buffer.concat([Buffer.from(prefix), body]);
}

/** Collects chunks and gives back whole frames. */
export class FrameReader {
  readonly #chunks: Buffer[] = [];
  #size = 0;

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
  }

  /** The next whole frame, or undefined if more bytes are needed. Throws RangeError on an impossible length. */
  next(): Buffer | undefined {
    const prefix = this.#peekLength();
    if (prefix === undefined || this.#size < prefix.prefixBytes + prefix.length) return undefined;
    const all = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
    const end = prefix.prefixBytes + prefix.length;
    this.#chunks.length = 0;
    if (end < all.length) this.#chunks.push(all.subarray(end));
    this.#size = all.length - end;
    return all.subarray(prefix.prefixBytes, end);
  }

  #peekLength(): { prefixBytes: number; length: number } | undefined {
    let length = 0;
    let prefixBytes = 0;
    for (const chunk of this.#chunks) {
      for (const byte of chunk) {
        length += (byte & 0x7f) * 2 ** (7 * prefixBytes);
        prefixBytes += 1;
        if (prefixBytes > 5 || length > kMaxFrameBytes) throw new RangeError(`frame of ${length} bytes or more`);
        if ((byte & 0x80) === 0) return { prefixBytes, length };
      }
    }
    return undefined;
  }
}
