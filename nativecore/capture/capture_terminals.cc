#include "capture/capture_terminals.h"

#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <sys/types.h>

#include "base/sys.h"

namespace stasis {
namespace {

struct WindowSize {
  unsigned short rows, columns, width_pixels, height_pixels;
};

}  // namespace

void capture_terminal(CapturedOpenFile& file, int own_fd) {
  // termios2 of the kernel: libc's struct termios has another layout and no free speeds.
  struct termios2 modes {};
  if (!sys::try_ioctl(own_fd, TCGETS2, &modes).ok()) return;
  CapturedTerminal& terminal = file.terminal;
  terminal.present = true;
  terminal.termios.assign(reinterpret_cast<const char*>(&modes), sizeof modes);
  WindowSize size{};
  if (sys::try_ioctl(own_fd, TIOCGWINSZ, &size).ok())
    terminal.window_size.assign(reinterpret_cast<const char*>(&size), sizeof size);
  // Both answer only through the master, or to a member of the session.
  pid_t host_pid = 0;
  if (sys::try_ioctl(own_fd, TIOCGSID, &host_pid).ok()) terminal.session = host_pid;
  host_pid = 0;
  if (sys::try_ioctl(own_fd, TIOCGPGRP, &host_pid).ok()) terminal.foreground_group = host_pid;
  unsigned number = 0;
  if (sys::try_ioctl(own_fd, TIOCGPTN, &number).ok()) terminal.pty_number = static_cast<int32_t>(number);
}

}  // namespace stasis
