// A TCP segment as the peer of a connection would send it, for the ends of
// directions that no system call can make. Only our own kernel sees it.
import { bytesOfWords } from './inet-address.js';

export interface PacketEnd {
  /** One word of IPv4, or four of IPv6; ::ffff:1.2.3.4 is sent as IPv4. */
  readonly words: readonly number[];
  readonly port: number;
}

export interface PeerPacket {
  readonly local: PacketEnd;
  readonly peer: PacketEnd;
  readonly sequence: number;
  readonly acknowledged: number;
  /** As in the header: scaled. */
  readonly window: number;
  readonly fin: boolean;
}

const kTcp = 6;
const kTcpHeaderBytes = 20;
const kHopLimit = 64;
const kFin = 1;
const kAck = 0x10;

/** With its IP header (RFC 791, 8200) in front. */
export function packetFromPeer({ local, peer, sequence, acknowledged, window, fin }: PeerPacket): Buffer {
  const tcp = Buffer.alloc(kTcpHeaderBytes);
  tcp.writeUInt16BE(peer.port, 0);
  tcp.writeUInt16BE(local.port, 2);
  tcp.writeUInt32BE(sequence, 4);
  tcp.writeUInt32BE(acknowledged, 8);
  tcp.writeUInt8((kTcpHeaderBytes / 4) << 4, 12);
  tcp.writeUInt8(kAck | (fin ? kFin : 0), 13);
  tcp.writeUInt16BE(window, 14);
  const [source, destination] = [addressBytes(peer.words), addressBytes(local.words)];
  const length = Buffer.alloc(4);
  length.writeUInt32BE(kTcpHeaderBytes, 0);
  const pseudoHeader = Buffer.concat([source, destination, length, Buffer.from([0, 0, 0, kTcp])]);
  tcp.writeUInt16BE(checksum(Buffer.concat([pseudoHeader, tcp])), 16);
  return Buffer.concat([ipHeader(source, destination), tcp]);
}

function ipHeader(source: Buffer, destination: Buffer): Buffer {
  if (source.length === 16) {
    const header = Buffer.alloc(8);
    header.writeUInt8(0x60, 0);
    header.writeUInt16BE(kTcpHeaderBytes, 4);
    header.writeUInt8(kTcp, 6);
    header.writeUInt8(kHopLimit, 7);
    return Buffer.concat([header, source, destination]);
  }
  const header = Buffer.alloc(12);
  header.writeUInt8(0x45, 0);
  header.writeUInt16BE(20 + kTcpHeaderBytes, 2);
  header.writeUInt8(kHopLimit, 8);
  header.writeUInt8(kTcp, 9);
  const whole = Buffer.concat([header, source, destination]);
  whole.writeUInt16BE(checksum(whole), 10);
  return whole;
}

function addressBytes(words: readonly number[]): Buffer {
  const bytes = bytesOfWords(words);
  const isMapped =
    bytes.length === 16 && bytes.readUInt32BE(8) === 0xffff && bytes.subarray(0, 8).every((byte) => byte === 0);
  return isMapped ? bytes.subarray(12) : bytes;
}

/** RFC 1071, of an even number of bytes. */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
