/* The tiny engine of the benches: tells when it began and when it could serve, then answers as an engine would.
 *
 * usage: child NOTIFY LISTEN|- [DELAY_MS [FOLDER BYTES]]
 *
 * NOTIFY is a unix datagram socket, to which goes "began NANOSECONDS" first of all and "serves NANOSECONDS" when the
 * listening socket is there, both on CLOCK_REALTIME: a booted machine's CLOCK_MONOTONIC may begin anew. The pid is told
 * by the socket's credentials. LISTEN is the path
 * of the unix socket to serve on, - for none. DELAY_MS is how long it pretends to load before it listens. Of each GPU in
 * CUDA_VISIBLE_DEVICES it takes BYTES, as the tests' fake NVIDIA library beside FOLDER/alloc understands it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char CHAT[] =
    "{\"id\":\"c\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"a b c d\"},\"finish_reason\":\"length\"}],"
    "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":4,\"total_tokens\":5}}";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\"}]}";

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    return to;
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void tell(const char *path, const char *what, long long at_ns) {
    char text[64];
    struct sockaddr_un to = address(path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int length = snprintf(text, sizeof text, "%s %lld", what, at_ns);
    /* Where nobody listens any more, engines of a bench that has no use for this must not wait. */
    sendto(fd, text, length, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
    close(fd);
}

/* Reads one request whole, body included, and returns whether it is a POST; -1 for none. */
static int request(int fd) {
    char text[65536];
    size_t have = 0, wanted = 0;
    while (have < sizeof text - 1) {
        ssize_t more = read(fd, text + have, sizeof text - 1 - have);
        if (more <= 0) return -1;
        have += more;
        text[have] = 0;
        char *end = strstr(text, "\r\n\r\n");
        if (end == NULL) continue;
        char *length = strcasestr(text, "\r\ncontent-length:");
        wanted = (end + 4 - text) + (length != NULL && length < end ? atol(length + 17) : 0);
        if (have >= wanted) return text[0] == 'P';
    }
    return -1;
}

static void answer(int fd, const char *body) {
    char text[1024];
    int length = snprintf(text, sizeof text,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                          "Connection: close\r\n\r\n%s",
                          strlen(body), body);
    if (write(fd, text, length) < 0) return;
}

static void take(const char *folder, const char *bytes) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char uuids[1024], path[4096];
    snprintf(uuids, sizeof uuids, "%s", visible ? visible : "");
    for (char *uuid = strtok(uuids, ","); uuid; uuid = strtok(NULL, ",")) {
        snprintf(path, sizeof path, "%s/alloc/%d.%s", folder, (int)getpid(), uuid);
        FILE *file = fopen(path, "w");
        if (file == NULL) exit(1);
        fputs(bytes, file);
        fclose(file);
    }
}

int main(int count, char **words) {
    long long began_ns = now_ns();
    if (count < 3) return 2;
    tell(words[1], "began", began_ns);
    if (count > 5) take(words[4], words[5]);
    if (count > 3) {
        long delay_ms = atol(words[3]);
        struct timespec delay = {delay_ms / 1000, delay_ms % 1000 * 1000000};
        nanosleep(&delay, NULL);
    }
    if (strcmp(words[2], "-") == 0)
        for (;;) pause();
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un at = address(words[2]);
    unlink(words[2]);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 64) != 0) return 1;
    tell(words[1], "serves", now_ns());
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        int kind = request(fd);
        if (kind >= 0) answer(fd, kind ? CHAT : MODELS);
        close(fd);
    }
}
