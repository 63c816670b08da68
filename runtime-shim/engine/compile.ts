// Images to plan: the rooms turn the model into steps; nothing is executed.
import type { Plan } from '../../nativecore/schema/messages.js';
import { StasisError, type Degradation } from '../errors/index.js';
import { CompileContext, type ImageModel } from './compile-context.js';
import type { CompileOptions } from './options.js';
import { kMaximalHoleBytes, kUsualHoleBytes, neededHoleBytes } from './plan/hole.js';
import { rooms } from './resources/index.js';

export interface CompiledPlan {
  readonly plan: Plan;
  readonly objections: readonly StasisError[];
  readonly degradations: readonly Degradation[];
}

/** Postconditions: with objections the plan is incomplete and only fit for printing. */
export function compilePlan(model: ImageModel, options: CompileOptions): CompiledPlan {
  const usual = compileInto(model, options, kUsualHoleBytes);
  const needed = neededHoleBytes(usual.plan);
  if (needed <= kUsualHoleBytes) return usual;
  if (needed > kMaximalHoleBytes) {
    throw new StasisError({
      code: 'IMAGE_FEATURE_UNSUPPORTED',
      message: `cannot restore: the restore plan needs ${needed >> 20n} MiB, ${kMaximalHoleBytes >> 20n} MiB is the most`,
    });
  }
  // steps name the hole's end, so they are written again
  return compileInto(model, options, needed);
}

function compileInto(model: ImageModel, options: CompileOptions, holeBytes: bigint): CompiledPlan {
  const ctx = new CompileContext(model, options);
  ctx.plan.hole = { address: 0n, lengthBytes: holeBytes };
  for (const room of rooms) room.compile?.(ctx);
  return {
    plan: ctx.plan.message(model.digest),
    objections: ctx.objections,
    degradations: ctx.degradations,
  };
}
