// Errors for people and for managers. What managers keep is the last line on
// stderr and the log record: both are one complete sentence with the remedy.
import { StasisError, type Subject } from '../../runtime-shim/errors/index.js';

/** Message and remedy in one line. */
export function errorSentence(error: unknown): string {
  if (!(error instanceof StasisError)) return `cannot go on: ${oneLine((error as Error).message ?? String(error))}`;
  const message = oneLine(error.message);
  return error.hint === undefined ? message : `${message}; ${oneLine(error.hint)}`;
}

/** Where, why and code, one line each, indented; other blockers of the same kind before it. Without the sentence itself. */
export function errorDetails(error: unknown, debug: boolean): string[] {
  if (!(error instanceof StasisError))
    return debug && error instanceof Error && error.stack !== undefined ? error.stack.split('\n') : [];
  const lines: string[] = [];
  for (const objection of error.objections) lines.push(`- ${errorSentence(objection)}`, ...indented(objection));
  lines.push(...indented(error));
  for (const later of error.suppressed) lines.push(`  then   ${errorSentence(later)}`);
  if (debug && error.stack !== undefined) lines.push(...error.stack.split('\n').slice(1));
  return lines;
}

function indented(error: StasisError): string[] {
  const where = whereText(error.subject);
  return [
    ...(where === '' ? [] : [`  where  ${where}`]),
    ...(error.why === undefined ? [] : [`  why    ${oneLine(error.why)}`]),
    ...(error.hint === undefined ? [] : [`  next   ${oneLine(error.hint)}`]),
    `  code   ${error.code}`,
  ];
}

function whereText(subject: Subject): string {
  const parts: string[] = [];
  if (subject.container !== undefined) parts.push(`container ${JSON.stringify(subject.container)}`);
  if (subject.hostPid !== undefined) {
    const inside =
      subject.nsPid === undefined || subject.nsPid === subject.hostPid ? '' : ` (container pid ${subject.nsPid})`;
    parts.push(`pid ${subject.hostPid}${inside}`);
  } else if (subject.nsPid !== undefined) parts.push(`container pid ${subject.nsPid}`);
  if (subject.comm !== undefined) parts.push(subject.comm);
  if (subject.targetFd !== undefined) parts.push(`fd ${subject.targetFd}`);
  if (subject.address !== undefined) parts.push(`address 0x${subject.address.toString(16)}`);
  if (subject.mount !== undefined) parts.push(`mount ${subject.mount}`);
  if (subject.step !== undefined) parts.push(subject.step);
  if (subject.image !== undefined) parts.push(`image ${subject.image}`);
  if (subject.path !== undefined) parts.push(subject.path);
  return parts.join(', ');
}

/** A control character in a name must not make a second line or colour a terminal. */
export function oneLine(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/\s*\n\s*/g, ' ').replace(/[\u0000-\u001f\u007f]/g, '?');
}
