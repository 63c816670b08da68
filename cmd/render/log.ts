// The --log file in runc's two formats: appended to, one record per line.
import { appendFileSync } from 'node:fs';

export type LogFormat = 'text' | 'json';
export type LogLevel = 'error' | 'warning' | 'info';

export function logRecord(format: LogFormat, level: LogLevel, message: string, time: Date): string {
  const stamp = `${time.toISOString().slice(0, 19)}Z`;
  if (format === 'json') return `${JSON.stringify({ level, msg: message, time: stamp })}\n`;
  return `time="${stamp}" level=${level} msg=${JSON.stringify(message)}\n`;
}

/** False if the file cannot be written: the message must then go elsewhere. */
export function appendLog(path: string, record: string): boolean {
  try {
    appendFileSync(path, record, { mode: 0o644 });
    return true;
  } catch {
    return false;
  }
}
