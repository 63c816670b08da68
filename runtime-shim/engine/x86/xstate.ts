// Extended state (x87, SSE, AVX, AVX-512, PKRU): the XSAVE area in standard
// format, as NT_X86_XSTATE gives and takes it, and its image form.
//
//   0    legacy FXSAVE area (512 bytes; XCR0 at 464, put there by the kernel)
//   512  header: XSTATE_BV, XCOMP_BV
//   576  components, each at the offset that CPUID 0xD tells
//
// The offsets differ between vendors: Intel keeps MPX's room before AVX-512,
// AMD does not. They are told apart by the size of the whole area.
import type { user_x86_fpregs_entry, user_x86_xsave_entry } from '../../../oci-spec/images/messages.js';
import { constantList } from '../../../oci-spec/protobuf/wire.js';
import { Struct } from '../struct.js';

const kHeaderOffset = 512;
const kComponentsOffset = 576;
const kXcr0Offset = 464;
/** Words of zeroes that the format wants in `padding`. */
const kPadding = constantList(new Array<number>(24).fill(0));

const kX87 = 1n << 0n;
const kSse = 1n << 1n;

interface Component {
  readonly bit: number;
  readonly bytes: number;
  readonly intel: number;
  readonly amd: number | undefined;
}

const kComponents = {
  ymmh: { bit: 2, bytes: 256, intel: 576, amd: 576 },
  bndreg: { bit: 3, bytes: 64, intel: 960, amd: undefined },
  bndcsr: { bit: 4, bytes: 64, intel: 1024, amd: undefined },
  opmask: { bit: 5, bytes: 64, intel: 1088, amd: 832 },
  zmmUpper: { bit: 6, bytes: 512, intel: 1152, amd: 896 },
  hi16Zmm: { bit: 7, bytes: 1024, intel: 1664, amd: 1408 },
  pkru: { bit: 9, bytes: 8, intel: 2688, amd: 2432 },
} as const satisfies Record<string, Component>;
type ComponentName = keyof typeof kComponents;
const kNames = Object.keys(kComponents) as ComponentName[];
/** In XSTATE_BV and XCR0. */
const kMasks = Object.fromEntries(kNames.map((name) => [name, 1n << BigInt(kComponents[name].bit)])) as Record<
  ComponentName,
  bigint
>;

/** AMD without AVX-512 has PKRU right after AVX. */
const kPkruAfterAvx = 832;

/** Component -> offset, for those that this area has. */
export type XstateLayout = ReadonlyMap<ComponentName, number>;

/** The layout of an area of `sizeBytes` for the features of XCR0 (`xfeatures`; undefined: all that the size allows). */
export function xstateLayout(sizeBytes: number, xfeatures: bigint | undefined): XstateLayout {
  // The same for every thread of a machine.
  const key = `${sizeBytes} ${xfeatures}`;
  let layout = layouts.get(key);
  if (layout === undefined) layouts.set(key, (layout = findLayout(sizeBytes, xfeatures)));
  return layout;
}
const layouts = new Map<string, XstateLayout>();

function findLayout(sizeBytes: number, xfeatures: bigint | undefined): XstateLayout {
  const enabled = (name: ComponentName): boolean =>
    xfeatures === undefined || (xfeatures & (1n << BigInt(kComponents[name].bit))) !== 0n;
  const candidates: XstateLayout[] = (['intel', 'amd'] as const).map((vendor) => {
    const layout = new Map<ComponentName, number>();
    for (const name of kNames) {
      const offset = kComponents[name][vendor];
      if (offset !== undefined && enabled(name) && offset + kComponents[name].bytes <= sizeBytes)
        layout.set(name, offset);
    }
    return layout;
  });
  if (enabled('ymmh') && enabled('pkru') && (xfeatures === undefined || !enabled('opmask')))
    candidates.push(
      new Map<ComponentName, number>([
        ['ymmh', kComponents.ymmh.intel],
        ['pkru', kPkruAfterAvx],
      ]),
    );
  const exact = candidates.find((layout) => endOf(layout) === sizeBytes && missing(layout, enabled) === 0);
  if (exact !== undefined) return exact;
  const ending = candidates.find((layout) => endOf(layout) === sizeBytes);
  if (ending !== undefined) return ending;
  // newer components than we know lie behind (AMX): only Intel has them
  return candidates[0] ?? new Map();
}

function endOf(layout: XstateLayout): number {
  let end = kComponentsOffset;
  for (const [name, offset] of layout) end = Math.max(end, offset + kComponents[name].bytes);
  return end;
}

function missing(layout: XstateLayout, enabled: (name: ComponentName) => boolean): number {
  return kNames.filter((name) => enabled(name) && !layout.has(name)).length;
}

export function xstateToImage(xstate: Uint8Array, hostFeatures: bigint | undefined): user_x86_fpregs_entry {
  const area = new Struct(xstate);
  const entry: user_x86_fpregs_entry = {
    cwd: area.u16(0),
    swd: area.u16(2),
    twd: area.u16(4),
    fop: area.u16(6),
    rip: area.u64(8),
    rdp: area.u64(16),
    mxcsr: area.u32(24),
    mxcsr_mask: area.u32(28),
    st_space: isZero(xstate, 32, 128) ? zeroes32(32) : area.u32s(32, 32),
    xmm_space: isZero(xstate, 160, 256) ? zeroes32(64) : area.u32s(160, 64),
    padding: kPadding,
  };
  if (xstate.length <= kComponentsOffset) return entry;
  const features = hostFeatures === undefined || hostFeatures === 0n ? area.u64(kXcr0Offset) : hostFeatures;
  const layout = xstateLayout(xstate.length, features === 0n ? undefined : features);
  const words64 = (name: ComponentName): bigint[] => {
    const offset = layout.get(name);
    if (offset === undefined) return [];
    const { bytes } = kComponents[name];
    return isZero(xstate, offset, bytes) ? zeroes64(bytes / 8) : area.u64s(offset, bytes / 8);
  };
  const words32 = (name: ComponentName): number[] => {
    const offset = layout.get(name);
    if (offset === undefined) return [];
    const { bytes } = kComponents[name];
    return isZero(xstate, offset, bytes) ? zeroes32(bytes / 4) : area.u32s(offset, bytes / 4);
  };
  entry.xsave = {
    xstate_bv: area.u64(kHeaderOffset),
    ymmh_space: words32('ymmh'),
    bndreg_state: words64('bndreg'),
    bndcsr_state: words64('bndcsr'),
    opmask_reg: words64('opmask'),
    zmm_upper: words64('zmmUpper'),
    hi16_zmm: words64('hi16Zmm'),
    pkru: words32('pkru'),
  };
  return entry;
}

/** State that a program does not use, which is most of it. */
function isZero(bytes: Uint8Array, offset: number, length: number): boolean {
  return kZeroes.compare(bytes, offset, offset + length, 0, length) === 0;
}
const kZeroes = Buffer.alloc(Math.max(...kNames.map((name) => kComponents[name].bytes)));

const known32 = new Map<number, number[]>();
function zeroes32(count: number): number[] {
  let zeroes = known32.get(count);
  if (zeroes === undefined) known32.set(count, (zeroes = constantList(new Array<number>(count).fill(0))));
  return zeroes;
}
const known64 = new Map<number, bigint[]>();
function zeroes64(count: number): bigint[] {
  let zeroes = known64.get(count);
  if (zeroes === undefined) known64.set(count, (zeroes = constantList(new Array<bigint>(count).fill(0n))));
  return zeroes;
}

/** State in use that a CPU with `layout` does not have; its names. */
export function unsupportedState(entry: user_x86_fpregs_entry, layout: XstateLayout): string[] {
  const inUse = entry.xsave?.xstate_bv ?? 0n;
  let supported = kX87 | kSse;
  for (const name of layout.keys()) supported |= kMasks[name];
  // Of thousands of threads hardly one has more.
  if ((inUse & ~supported) === 0n) return [];
  const known = kNames.reduce((mask, name) => mask | (1n << BigInt(kComponents[name].bit)), kX87 | kSse);
  const names: string[] = kNames.filter(
    (name) => (inUse & (1n << BigInt(kComponents[name].bit))) !== 0n && !layout.has(name),
  );
  for (let bit = 0; bit < 63; bit += 1) {
    const mask = 1n << BigInt(bit);
    if ((inUse & mask) !== 0n && (known & mask) === 0n) names.push(`component ${bit}`);
  }
  return names;
}

/** NT_X86_XSTATE for a CPU with an area of `sizeBytes` and `layout`. */
export function xstateFromImage(entry: user_x86_fpregs_entry, sizeBytes: number, layout: XstateLayout): Uint8Array {
  const area = new Struct(Math.max(sizeBytes, kComponentsOffset));
  area
    .setU16(0, entry.cwd)
    .setU16(2, entry.swd)
    .setU16(4, entry.twd)
    .setU16(6, entry.fop)
    .setU64(8, entry.rip)
    .setU64(16, entry.rdp)
    .setU32(24, entry.mxcsr)
    .setU32(28, entry.mxcsr_mask)
    .setU32s(32, entry.st_space.slice(0, 32))
    .setU32s(160, entry.xmm_space.slice(0, 64));
  const xsave: user_x86_xsave_entry = entry.xsave ?? emptyXsave();
  // present even where the capture had them in their initial state: the bytes are
  // those of that state, and without these bits the kernel ignores MXCSR
  let present = kX87 | kSse;
  const put = (name: ComponentName, words: readonly (number | bigint)[]): void => {
    const { bytes } = kComponents[name];
    const offset = layout.get(name);
    const mask = kMasks[name];
    if (offset === undefined || words.length === 0 || (xsave.xstate_bv & mask) === 0n) return;
    present |= mask;
    if (typeof words[0] === 'bigint') area.setU64s(offset, words.slice(0, bytes / 8) as bigint[]);
    else area.setU32s(offset, words.slice(0, bytes / 4) as number[]);
  };
  put('ymmh', xsave.ymmh_space);
  put('bndreg', xsave.bndreg_state);
  put('bndcsr', xsave.bndcsr_state);
  put('opmask', xsave.opmask_reg);
  put('zmmUpper', xsave.zmm_upper);
  put('hi16Zmm', xsave.hi16_zmm);
  put('pkru', xsave.pkru);
  area.setU64(kHeaderOffset, present);
  return area.bytes;
}

function emptyXsave(): user_x86_xsave_entry {
  return {
    xstate_bv: kX87 | kSse,
    ymmh_space: [],
    bndreg_state: [],
    bndcsr_state: [],
    opmask_reg: [],
    zmm_upper: [],
    hi16_zmm: [],
    pkru: [],
  };
}
