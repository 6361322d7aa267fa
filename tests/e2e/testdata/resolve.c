/* Prints the addresses of a name, as musl's resolver finds them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found, *a;
	char text[INET6_ADDRSTRLEN];
	int err;

	if (argc != 2)
		return 2;
	err = getaddrinfo(argv[1], 0, &hints, &found);
	if (err) {
		fprintf(stderr, "%s\n", gai_strerror(err));
		return 1;
	}
	for (a = found; a; a = a->ai_next) {
		const void *addr = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;

		puts(inet_ntop(a->ai_family, addr, text, sizeof(text)));
	}
	return 0;
}
