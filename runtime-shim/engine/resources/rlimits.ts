// Resource limits of processes.
import type { rlimit_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { Struct, u64Bytes } from '../struct.js';

export const rlimitsRoom: Room = { kind: 'rlimits', encode, compile };

const kInfinity = (1n << 64n) - 1n;
/** RLIMIT_* numbers with the words that /proc/PID/limits has for them. */
const kLimits = [
  'Max cpu time',
  'Max file size',
  'Max data size',
  'Max stack size',
  'Max core file size',
  'Max resident set',
  'Max processes',
  'Max open files',
  'Max locked memory',
  'Max address space',
  'Max file locks',
  'Max pending signals',
  'Max msgqueue size',
  'Max nice priority',
  'Max realtime priority',
  'Max realtime timeout',
] as const;

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const printed = parseLimits(task.raw.limits);
    const rlimits = kLimits.map((label, resource): rlimit_entry => {
      const raw = task.raw.rlimits[resource];
      if (raw !== undefined && raw.length >= 16) {
        const limit = new Struct(raw);
        return { cur: limit.u64(0), max: limit.u64(8) };
      }
      // prlimit(2) on a task with other ids needs CAP_SYS_RESOURCE; /proc does not
      return printed.get(label) ?? { cur: kInfinity, max: kInfinity };
    });
    ctx.draft(task).core.tc.rlimits = { rlimits };
  }
}

/** "Max open files            1024                 4096                 files" */
export function parseLimits(bytes: Uint8Array): ReadonlyMap<string, rlimit_entry> {
  const limits = new Map<string, rlimit_entry>();
  const number = (word: string): bigint => (word === 'unlimited' ? kInfinity : BigInt(word));
  for (const line of Buffer.from(bytes).toString('latin1').split('\n')) {
    const found = /^(Max [a-z ]*?)\s{2,}(unlimited|\d+)\s+(unlimited|\d+)/.exec(line);
    if (found === null) continue;
    limits.set(found[1] ?? '', { cur: number(found[2] ?? '0'), max: number(found[3] ?? '0') });
  }
  return limits;
}

// ---- images to plan

function compile(ctx: CompileContext): void {
  const own = ctx.options.kernel.rlimits;
  for (const { image, builder } of ctx.tasks.values()) {
    if (image.zombie) continue;
    (image.core.tc?.rlimits?.rlimits ?? []).slice(0, kLimits.length).forEach((limit, resource) => {
      const inherited = own?.[resource];
      let { cur, max } = limit;
      if (inherited !== undefined) {
        if (max > inherited.max) {
          ctx.degrade(
            'RLIMIT_NARROWED',
            `"${kLimits[resource]}" of pid ${image.pid} is ${print(max)} at most in the images; the restoring side may not give more than ${print(inherited.max)}`,
            { nsPid: image.pid },
          );
          max = inherited.max;
          cur = cur > max ? max : cur;
        }
        if (cur === inherited.cur && max === inherited.max) return;
      }
      builder.step(Phase.CREDENTIALS, 'prlimit64', [0, resource, ctx.plan.blob(u64Bytes(cur, max)), 0], {
        from: `core[${image.pid}].tc.rlimits[${resource}]`,
        note: kLimits[resource] ?? '',
      });
    });
  }
}

const print = (value: bigint): string => (value === kInfinity ? 'unlimited' : String(value));
