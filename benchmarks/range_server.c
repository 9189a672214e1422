// A web server of a folder's files with ranges and ETags that answers after a fixed time: an object store at a distance
// that is never the bottleneck. One thread a connection.
//
//     cc -O2 -pthread range_server.c -o range_server && ./range_server FOLDER MILLISECONDS
//
// prints its port; the counts of requests and bytes sent so far are at /_counts.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static const char* folder;
static useconds_t latency;
static atomic_long requests, bytes;

static const char* header(const char* head, const char* name) {
  const char* line = strcasestr(head, name);
  return line ? line + strlen(name) : NULL;
}

static int answer(int client, const char* head) {
  char method[8], target[1024], path[2048], out[1024];
  if (sscanf(head, "%7s %1023s", method, target) != 2 || strstr(target, "..")) return -1;
  if (strcmp(target, "/_counts") == 0) {
    int n = snprintf(path, sizeof path, "%ld %ld", atomic_load(&requests), atomic_load(&bytes));
    n = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", n, path);
    return write(client, out, n) == n ? 0 : -1;
  }
  usleep(latency);
  target[strcspn(target, "?")] = 0;
  snprintf(path, sizeof path, "%s%s", folder, target);
  struct stat status;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    if (file >= 0) close(file);
    const char* missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    return write(client, missing, strlen(missing)) > 0 ? 0 : -1;
  }
  long first = 0, last = status.st_size - 1;
  const char* range = header(head, "\nrange: bytes=");
  if (range) sscanf(range, "%ld-%ld", &first, &last);
  if (last >= status.st_size) last = status.st_size - 1;
  char content_range[128] = "";
  if (range) snprintf(content_range, sizeof content_range, "Content-Range: bytes %ld-%ld/%ld\r\n", first, last, (long)status.st_size);
  int n = snprintf(out, sizeof out,
                   "HTTP/1.1 %s\r\nContent-Length: %ld\r\n%sETag: \"%lx-%lx\"\r\nAccept-Ranges: bytes\r\n"
                   "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/octet-stream\r\n\r\n",
                   range ? "206 Partial Content" : "200 OK", last - first + 1, content_range, (long)status.st_size,
                   (long)status.st_mtime);
  int ok = write(client, out, n) == n;
  if (ok && strcmp(method, "GET") == 0) {
    atomic_fetch_add(&requests, 1);
    off_t at = first;
    while (ok && at <= last) {
      ssize_t sent = sendfile(client, file, &at, last + 1 - at);
      ok = sent > 0;
      if (ok) atomic_fetch_add(&bytes, sent);
    }
  }
  close(file);
  return ok ? 0 : -1;
}

static void* serve(void* argument) {
  int client = (int)(long)argument, one = 1;
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  char head[8192];
  size_t length = 0;
  for (;;) {
    head[length] = 0;
    char* end = strstr(head, "\r\n\r\n");
    if (!end) {
      ssize_t n = length < sizeof head - 1 ? read(client, head + length, sizeof head - 1 - length) : 0;
      if (n <= 0) break;
      length += n;
      continue;
    }
    end[2] = 0;
    if (answer(client, head) != 0) break;
    size_t used = end + 4 - head;
    memmove(head, head + used, length -= used);
  }
  close(client);
  return NULL;
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  folder = arguments[1];
  latency = (useconds_t)(atof(arguments[2]) * 1000);
  signal(SIGPIPE, SIG_IGN);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (bind(listener, (void*)&address, size) || listen(listener, 1024) || getsockname(listener, (void*)&address, &size))
    return 1;
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (;;) {
    long client = accept(listener, NULL, NULL);
    pthread_t thread;
    if (client >= 0 && pthread_create(&thread, NULL, serve, (void*)client) == 0) pthread_detach(thread);
  }
}
