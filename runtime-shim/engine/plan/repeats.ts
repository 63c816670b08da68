// Steps that are alike but for their numbers share one message (Step.more_args in
// plan.proto). To whoever numbers, prints or checks them they are steps of their own.

/** Of a Step; what is left out is empty. */
interface Repeatable {
  readonly args?: readonly unknown[] | undefined;
  readonly moreArgs?: readonly bigint[] | undefined;
}

/** How many steps a message is. */
function countOf({ args = [], moreArgs = [] }: Repeatable): number {
  return moreArgs.length === 0 ? 1 : 1 + moreArgs.length / args.length;
}

export function countSteps(steps: readonly Repeatable[]): number {
  let count = 0;
  for (const step of steps) count += countOf(step);
  return count;
}

/** By number, from 0; undefined if there are not so many. */
export function stepAt<T extends Repeatable>(steps: readonly T[], number: number): T | undefined {
  let first = 0;
  for (const step of steps) {
    const count = countOf(step);
    if (number < first + count) return nth(step, number - first);
    first += count;
  }
  return undefined;
}

/** Each by itself, in order. */
export function expandSteps<T extends Repeatable>(steps: readonly T[]): T[] {
  return steps.flatMap((step) => Array.from({ length: countOf(step) }, (_, number) => nth(step, number)));
}

function nth<T extends Repeatable>(step: T, number: number): T {
  const { args = [], moreArgs = [] } = step;
  if (moreArgs.length === 0) return step;
  const numbers = moreArgs.slice((number - 1) * args.length, number * args.length);
  const own = number === 0 ? args : numbers.map((immediate) => ({ immediate }));
  return { ...step, args: own, moreArgs: [] };
}
