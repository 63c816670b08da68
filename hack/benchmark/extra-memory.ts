// What a checkpoint takes of the machine's memory while it runs: processes of
// the tool, copies of the target, page tables. Pages that processes share count
// once, page cache and files on a tmpfs not at all.
import { readFileSync } from 'node:fs';

const kEveryMs = 2;
const kCounted = /^(AnonPages|PageTables|KernelStack):\s+(\d+) kB$/gm;

export class ExtraMemory {
  readonly #before = used();
  #peak = this.#before;
  readonly #timer = setInterval(() => (this.#peak = Math.max(this.#peak, used())), kEveryMs);

  /** Whatever else the machine does is in it: of several samples the median is the one to look at. */
  stop(): number {
    clearInterval(this.#timer);
    return Math.max(0, this.#peak - this.#before);
  }
}

function used(): number {
  let kibibytes = 0;
  for (const [, , value] of readFileSync('/proc/meminfo', 'utf8').matchAll(kCounted)) kibibytes += Number(value);
  return kibibytes * 1024;
}
