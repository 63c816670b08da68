// Addresses of internet sockets: sockaddr, words of the images, text.

export const kInet = 2;
export const kInet6 = 10;

export interface InetAddress {
  readonly port: number;
  /** Words as they lie in memory, network byte order. */
  readonly words: readonly number[];
  readonly scope: number;
}

/** struct sockaddr_in: family, port (big-endian), address; sockaddr_in6 has flow information before and a scope after. */
export function inetAddressOf(bytes: Uint8Array): InetAddress {
  const buffer = Buffer.from(bytes);
  const family = buffer.length >= 4 ? buffer.readUInt16LE(0) : 0;
  if (family === kInet && buffer.length >= 8)
    return { port: buffer.readUInt16BE(2), words: [buffer.readUInt32LE(4)], scope: 0 };
  if (family === kInet6 && buffer.length >= 24) {
    const words = [8, 12, 16, 20].map((at) => buffer.readUInt32LE(at));
    return { port: buffer.readUInt16BE(2), words, scope: buffer.length >= 28 ? buffer.readUInt32LE(24) : 0 };
  }
  return { port: 0, words: [], scope: 0 };
}

export function bytesOfWords(words: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * words.length);
  words.forEach((word, index) => bytes.writeUInt32LE(word >>> 0, 4 * index));
  return bytes;
}

export function addressText(words: readonly number[], port: number): string {
  const bytes = bytesOfWords(words);
  if (words.length === 1) return `${[...bytes].join('.')}:${port}`;
  const groups = words.length === 4 ? (bytes.toString('hex').match(/.{4}/g) ?? []) : [];
  return `[${groups.map((group) => group.replace(/^0{1,3}/, '')).join(':')}]:${port}`;
}

export function socketAddress(family: number, port: number, words: readonly number[]): Buffer {
  const address = Buffer.alloc(family === kInet ? 16 : 28);
  address.writeUInt16LE(family, 0);
  address.writeUInt16BE(port, 2);
  bytesOfWords(words).copy(address, family === kInet ? 4 : 8);
  return address;
}
