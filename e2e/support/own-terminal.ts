// A command on a terminal of its own, as a person has it: typed into, looked
// at, resized. Node has no such terminals, Python does.
import { spawn, type ChildProcess } from 'node:child_process';
import { waitFor } from './wait.js';

const program = `
import fcntl, os, pty, select, signal, struct, sys, termios
rows, columns = 40, 120
def resize(*_):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
def larger(*_):
    global rows, columns
    rows, columns = 50, 130
    resize()
pid, master = pty.fork()
if pid == 0:
    os.read(0, 1)
    os.execv(sys.argv[1], sys.argv[1:])
resize()
before = termios.tcgetattr(master)
signal.signal(signal.SIGUSR1, larger)
os.write(master, b"\\n")
while True:
    ready = select.select([0, master], [], [])[0]
    if master in ready:
        try: data = os.read(master, 4096)
        except OSError: break
        if not data: break
        os.write(1, data)
    if 0 in ready:
        typed = os.read(0, 4096)
        if typed: os.write(master, typed)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("<modes %s>" % ("as before" if termios.tcgetattr(master) == before else "changed"), flush=True)
sys.exit(status)
`;

export class OwnTerminal {
  readonly #child: ChildProcess;
  readonly #ended: Promise<number>;
  #output = '';

  /** The window has 40 rows and 120 columns. */
  constructor(command: string, args: readonly string[]) {
    this.#child = spawn('python3', ['-c', program, command, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout?.on('data', (chunk: Buffer) => (this.#output += chunk.toString('latin1')));
    this.#ended = new Promise((resolve) => this.#child.once('close', (code) => resolve(code ?? -1)));
  }

  output(): string {
    return this.#output;
  }

  type(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** To 50 rows and 130 columns. */
  enlarge(): void {
    this.#child.kill('SIGUSR1');
  }

  async shows(pattern: RegExp): Promise<RegExpExecArray> {
    return await waitFor(`${pattern} on the terminal`, () => pattern.exec(this.#output) ?? undefined, {
      seen: () => JSON.stringify(this.#output.slice(-1000)),
    });
  }

  /** Exit status of the command. */
  async ended(): Promise<number> {
    return await this.#ended;
  }

  close(): void {
    this.#child.kill('SIGKILL');
  }
}
