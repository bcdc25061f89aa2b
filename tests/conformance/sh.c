// busybox's shell, but for `sh -c env`: that shell drops variables whose names are no identifiers, such as
// a-b, and tests look for them in the output.
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
  int is_env = argc == 3 && strcmp(argv[1], "-c") == 0 && strcmp(argv[2], "env") == 0;
  char *env[] = {"env", 0};
  execv("/bin/busybox", is_env ? env : argv);
  return 127;
}
