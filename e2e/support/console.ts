// A console socket as a manager has one: takes the master of a container's
// terminal, writes what comes from it to a file, and types into it. Node
// cannot receive descriptors, Python can.
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { waitFor } from './wait.js';

const receiver = `
import os, select, socket, sys
path, output = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(4)
log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
master = None
while True:
    ready = select.select([0, listener] + ([] if master is None else [master]), [], [])[0]
    if listener in ready:
        connection, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        if master is not None: os.close(master)
        master = fds[0]
        os.write(log, b"<console>")
    elif master in ready:
        try: data = os.read(master, 4096)
        except OSError: data = b""
        if data: os.write(log, data)
        else:
            os.close(master)
            master = None
            os.write(log, b"<hangup>")
    if 0 in ready:
        typed = os.read(0, 4096)
        if not typed: break
        if master is not None: os.write(master, typed)
`;

export class Console {
  readonly path: string;
  readonly #output: string;
  readonly #child: ChildProcess;

  private constructor(path: string, output: string) {
    this.path = path;
    this.#output = output;
    this.#child = spawn('python3', ['-c', receiver, path, output], { stdio: ['pipe', 'ignore', 'inherit'] });
  }

  /** Socket names are short: `path` is not below the test's folder. */
  static async open(path: string, output: string): Promise<Console> {
    const console = new Console(path, output);
    await waitFor('the console socket', () => (existsSync(output) ? true : undefined));
    return console;
  }

  output(): string {
    return readFileSync(this.#output, 'utf8');
  }

  type(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** Waits for something that is shown after `from` bytes of output. */
  async shows(pattern: RegExp, from = 0): Promise<RegExpExecArray> {
    return await waitFor(`${pattern} on the console`, () => pattern.exec(this.output().slice(from)) ?? undefined, {
      seen: () => JSON.stringify(this.output().slice(from)),
    });
  }

  close(): void {
    this.#child.kill();
  }
}
